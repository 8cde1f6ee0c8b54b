"""`lltool run` on a real model: answers, chats, and one line for what is wrong."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from lltool.engine import generate
from lltool.tools import cli


@pytest.fixture(scope="module")
def model(real_model: Callable[[str], Path]) -> str:
    return str(real_model("smollm2-q4_1"))


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts text on standard input."""
    return lambda text: monkeypatch.setattr("sys.stdin", io.StringIO(text))


ITEMS = ("evaluate", "sample", "text", "output")
EXACT = ["--temp", "0", "--precision", "f32"]
QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."


def test_a_prompt_is_answered_with_the_chat_template(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "-m", model, "-p", QUESTION, "-n", "20", *EXACT]) == 0
    out, err = capsys.readouterr()
    assert out == ANSWER + "\n"
    assert "prompt 37 tokens" in err
    assert "8 tokens" in err
    assert "the model ended the text with <|im_end|>" in err
    total, items = re.search(r"8 tokens, ([\d.]+) t/s", err), re.search(r"\[a token: (.*) ms\]", err)
    assert total
    assert items
    named = dict(re.findall(r"(\w+) ([\d.]+)", items[1]))
    assert list(named) == ["model", "sampling", "text", "output"]
    # Together they are the time of a token. They are rounded to 0.01 ms, and the speed of a busy machine, 1.0, to 0.1.
    assert sum(map(float, named.values())) == pytest.approx(1e3 / float(total[1]), rel=0.06, abs=0.03)
    assert float(re.findall(r"\(([\d.]+) t/s\)", items[1])[0]) >= float(total[1])


def test_raw_continues_the_prompt(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    raw = ["run", "-m", model, "--raw", "-p", "The capital of France is", "-n", "2", *EXACT]
    assert cli.main(raw) == 0
    assert capsys.readouterr().out == "The capital of France is Paris.\n"
    assert cli.main([*raw, "--no-display-prompt"]) == 0
    out, err = capsys.readouterr()
    assert out == " Paris.\n"
    assert "2 tokens were asked for" in err


def test_json_reports_text_tokens_and_times(
    model: str, capsys: pytest.CaptureFixture[str], say: Callable[[str], None]
) -> None:
    say(QUESTION + "\n")
    assert cli.main(["run", "-m", model, "--json", "-r", "Paris", *EXACT]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["prompt"], report["text"]) == (QUESTION, "The capital of France is ")
    assert (report["reason"], report["detail"]) == ("stop", "the stop string 'Paris'")
    assert len(report["tokens"]) == report["timings"]["tokens"] == 6
    assert report["timings"]["prompt_tokens"] == 37
    times = report["timings"]
    assert 0 < times["decode_rate"] < times["evaluate_rate"]
    assert times["decode_seconds"] == pytest.approx(sum(times[f"{n}_seconds"] for n in ITEMS))
    assert report["load_seconds"] == report["load"]["model"] + report["load"]["tokenizer"]


def test_the_prompt_can_come_from_a_file(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "prompt.txt"
    path.write_text(QUESTION + "\n")
    assert cli.main(["run", "-m", model, "-f", str(path), "-n", "20", *EXACT]) == 0
    assert capsys.readouterr().out == ANSWER + "\n"


@pytest.mark.parametrize("threads", ["1", "2"])
def test_the_same_seed_gives_the_same_text(model: str, capsys: pytest.CaptureFixture[str], threads: str) -> None:
    texts = []
    for seed in ("1", "1", "2"):
        arguments = [
            "run",
            "-m",
            model,
            "-p",
            "Tell me a story",
            "-n",
            "24",
            "--temp",
            "1.5",
            "--seed",
            seed,
            "-t",
            threads,
        ]
        assert cli.main(arguments) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]


def test_a_chat_keeps_what_was_said_in_the_cache(
    model: str, capsys: pytest.CaptureFixture[str], say: Callable[[str], None]
) -> None:
    say(f"/help\n\n{QUESTION}\nAnd of Italy?\n/clear\n{QUESTION}\n/exit\nnever read\n")
    assert cli.main(["run", "-m", model, "-i", "-n", "20", *EXACT]) == 0
    out, err = capsys.readouterr()
    assert out.count(ANSWER) == 2
    assert "Rome" in out
    assert err.count("/clear forgets") == 2
    times = [line for line in err.splitlines() if line.startswith("[load")]
    assert len(times) == 3
    assert "prompt 37 tokens" in times[0]
    assert "prompt 15 and 44 cached tokens" in times[1]
    assert "prompt 1 and 36 cached tokens" in times[2]


def test_a_chat_survives_a_conversation_that_is_too_long(
    model: str, capsys: pytest.CaptureFixture[str], say: Callable[[str], None]
) -> None:
    say(f"{'long ' * 99}\n{QUESTION}\n")
    assert cli.main(["run", "-m", model, "-i", "-c", "64", "-n", "20", *EXACT]) == 0
    out, err = capsys.readouterr()
    assert ANSWER in out
    assert "the context 64; shorten the prompt" in err


def test_ctrl_c_stops_the_answer_and_not_the_chat(
    model: str, capsys: pytest.CaptureFixture[str], say: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    append = generate.Dialogue.append
    calls = iter(range(100))

    def interrupt_once(self: generate.Dialogue, id: int) -> object:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return append(self, id)

    monkeypatch.setattr(generate.Dialogue, "append", interrupt_once)
    say(f"{QUESTION}\n{QUESTION}\n")
    assert cli.main(["run", "-m", model, "-i", "-n", "20", *EXACT]) == 0
    out, err = capsys.readouterr()
    assert "> The capital of\n" in out
    assert "Paris" in out
    assert "interrupted]" in err


def test_a_template_from_a_file_replaces_the_models(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "template.jinja"
    path.write_text("{{ messages[1].content }}:{{ messages[0].content }}")
    template = ["--chat-template-file", str(path), "-sys", " 4, 5, 6,"]
    assert cli.main(["run", "-m", model, "-p", "1, 2, 3", *template, "-n", "3", "--json", *EXACT]) == 0
    templated = json.loads(capsys.readouterr().out)
    assert cli.main(["run", "-m", model, "-p", "1, 2, 3: 4, 5, 6,", "--raw", "-n", "3", "--json", *EXACT]) == 0
    raw = json.loads(capsys.readouterr().out)
    assert templated["tokens"] == raw["tokens"]
    assert templated["timings"]["prompt_tokens"] == raw["timings"]["prompt_tokens"] == 17
    path.write_text("{{ raise_exception('no system role') }}")
    assert cli.main(["run", "-m", model, "-p", "x", *template]) == 2
    assert capsys.readouterr().err.endswith("chat template, line 1: no system role\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", ""], "the prompt is empty"),
        (["-p", "x", "-c", "8"], "the prompt has 31 tokens and the context 8; shorten the prompt or load"),
        (["-p", "x", "-c", "0"], "'0' is not a whole number of at least 1"),
        (["-p", "x", "-n", "-2"], "-n -2, wanted a number of tokens, or -1"),
        (["-p", "x", "--temp", "-1"], "temperature -1.0, wanted a number from 0"),
        (["-p", "x", "--top-p", "1.5"], "top_p 1.5, wanted a number from 0 to 1"),
        (["-p", "x", "--top-k", "-1"], "top_k -1"),
        (["-p", "x", "--temp", "warm"], "argument --temp: invalid float value: 'warm'"),
        (["-p", "x", "-f", "y"], "-p and -f are both prompts"),
        (["--raw", "-i"], "--interactive is for a chat and --raw is none"),
        (["--json", "-i"], "--json reports one answer, not a chat"),
        (["-f", "no-such-file"], "no-such-file: No such file or directory"),
    ],
)
def test_bad_input_is_one_line(
    model: str, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert cli.main(["run", "-m", model, *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("lltool: error: ")
    assert message in err
    assert err.count("\n") == 1
