"""`lltool run` on a real model: answers, chats, and one line for each error."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lltool.engine.generate import generate
from lltool.engine.model import load_model
from lltool.engine.sampling import Sampler
from lltool.tools import cli


@pytest.fixture(scope="module")
def model(real_model: Callable[[str], Path]) -> str:
    return str(real_model("smollm2-q4_1"))


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts text on standard input."""
    return lambda text: monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


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
    # They add up to the time of a token. They are rounded to 0.01 ms, and the speed, 1.0 on a busy machine, to 0.1.
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


def test_a_chat_keeps_the_conversation_in_the_cache(
    model: str, capsys: pytest.CaptureFixture[str], say: Callable[[str], None]
) -> None:
    say(f"{QUESTION}\nAnd of Italy?\n/regen\n/clear\n{QUESTION}\n/exit\nnever read\n")
    assert cli.main(["run", "-m", model, "-i", "-n", "20", "--stats", *EXACT]) == 0
    out, err = capsys.readouterr()
    answers = out.splitlines()
    assert (answers[0], answers[3]) == (ANSWER, ANSWER)
    assert "Rome" in answers[1]
    assert answers[2] == answers[1]
    times = [line for line in err.splitlines() if line.startswith("[prompt")]
    assert len(times) == 4
    assert "prompt 37 tokens" in times[0]
    assert "prompt 15 and 44 cached tokens" in times[1]
    assert "prompt 1 and 58 cached tokens" in times[2]
    assert "prompt 37 tokens" in times[3]


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
    assert capsys.readouterr().err.endswith("template.jinja, line 1: no system role\n")


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert cli.main(["run", *arguments, "--json", "-n", "2", *EXACT]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def test_a_prompt_is_the_same_text_wherever_it_comes_from(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], say: Callable[[str], None]
) -> None:
    path = tmp_path / "prompt.txt"
    text = "\ufeffOne\r\ntwo"
    path.write_bytes(f"{text}\r\n".encode())
    say(f"{text}\n")
    raw = ["-m", model, "--raw"]
    found = [run_json(capsys, *raw, *source) for source in (["-p", text], ["-f", str(path)], [])]
    assert [report["prompt"] for report in found] == ["One\ntwo"] * 3
    assert len({tuple(report["tokens"]) for report in found}) == 1


def test_escapes_are_replaced_in_prompts_but_not_in_files(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    escaped, raw = r"a\nb\\\x41\d", ["-m", model, "--raw"]
    assert run_json(capsys, *raw, "-p", escaped)["prompt"] == "a\nb\\A\\d"
    assert run_json(capsys, *raw, "-p", escaped, "--no-escape")["prompt"] == escaped
    path = tmp_path / "prompt.txt"
    path.write_text(escaped)
    assert run_json(capsys, *raw, "-f", str(path))["prompt"] == escaped
    report = run_json(capsys, *raw, "-p", "One, two, three, four,", "-r", r"\x20five")
    assert (report["text"], report["detail"]) == ("", "the stop string ' five'")


def test_an_empty_text_is_continued_from_the_begin_token(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "prompt.txt"
    path.write_text("")
    with load_model(Path(model), context=64, precision="f32") as loaded:
        tokens = [token.id for token in generate(loaded, [], sampler=Sampler(temperature=0), max_tokens=2)]
    for source in (["-p", ""], ["-f", str(path)]):
        report = run_json(capsys, "-m", model, "--raw", *source)
        assert (report["tokens"], report["timings"]["prompt_tokens"]) == (tokens, 1)


def test_the_seed_that_was_drawn_gives_the_same_text_again(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", "-m", model, "-p", "Tell me a story", "-n", "12", "--temp", "1.5"]
    assert cli.main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert cli.main([*arguments, "-s", str(report["seed"])]) == 0
    out, err = capsys.readouterr()
    assert out == report["text"] + "\n"
    assert f"| seed {report['seed']}]" in err


def test_control_tokens_in_a_prompt_are_text_unless_special(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    def count(prompt: str, *more: str) -> int:
        tokens: int = run_json(capsys, "-m", model, "-p", prompt, *more)["timings"]["prompt_tokens"]
        return tokens

    plain = count("x")
    assert count("x<|im_end|>") == plain + len(["<", "|", "im", "_", "end", "|", ">"])
    assert count("x<|im_end|>", "--special") == plain + 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", ""], "the prompt is empty; only --raw can continue an empty text"),
        (["-p", "caf\udce9"], "-p: byte 3 is not UTF-8 (0xe9)"),
        (["-p", r"caf\xe9"], "-p with its escapes replaced: byte 3 is not UTF-8 (0xe9)"),
        (["-p", "x", "-sys", "\udcff"], "--system: byte 0 is not UTF-8 (0xff)"),
        (["-f", "/dev/zero"], "/dev/zero: a device, wanted a regular file"),
        (["-p", "x", "-c", "8"], "the prompt has 31 tokens and the context 8; shorten the prompt or load"),
        (["-p", "x", "-c", "0"], "'0' is not a whole number of at least 1"),
        (["-p", "x", "--keep", "-2"], "--keep -2, wanted a number of tokens, or -1"),
        (["-p", "x", "--prompt-cache-ro"], "of --prompt-cache"),
        (["-p", "x", "--prompt-cache", "a", "--prompt-cache-ro", "--prompt-cache-all"], "leave one of them out"),
        (["-i", "--prompt-cache", "a"], "--prompt-cache is for one answer"),
        (["-p", "x", "-n", "-3"], "-n -3, wanted a number of tokens, -1"),
        (["-p", "x", "--temp", "-1"], "temperature -1.0, wanted a number from 0"),
        (["-p", "x", "--top-p", "1.5"], "top_p 1.5, wanted a number from 0 to 1"),
        (["-p", "x", "--top-k", "-1"], "top_k -1"),
        (["-p", "x", "--samplers", "top_k;best"], "argument --samplers: no sampling step 'best'; wanted some of"),
        (["-p", "x", "--sampling-seq", "kz"], "no sampling step 'z' in 'kz'; wanted letters of edskypmxta"),
        (["-p", "x", "-l", "5"], "logit_bias '5', wanted a token id and a signed number, as 15043+1"),
        (["-p", "x", "-l", "49152+1"], "logit_bias: token 49152, wanted one from 0 to 49151"),
        (["-p", "x", "--mirostat", "3"], "mirostat 3, wanted a number from 0 to 2"),
        (["-p", "x", "--dry-sequence-breaker", ""], "dry_sequence_breakers has an empty text"),
        (["-p", "x", "--temp", "warm"], "argument --temp/--temperature: temperature 'warm', wanted a number"),
        (["-p", "x", "-f", "y"], "-p and -f both give a prompt"),
        (["--raw", "-i"], "--interactive is for a chat, but --raw only continues a prompt"),
        (["-p", "x", "more"], "'more': -p or -f gives the prompt already; leave one of them out"),
        (["--json", "-i"], "--json reports one answer, not a chat"),
        (["-f", "no-such-file"], "no-such-file: no such file"),
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


def test_a_prompt_cache(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second run computes one token of the prompt, and a continued answer only what is new."""
    file = tmp_path / "prompt.state"
    command = ["run", "-m", model, "-p", QUESTION, *EXACT, "--json", "--prompt-cache", str(file)]

    def run(*more: str) -> dict[str, Any]:
        assert cli.main([*command, *more]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    first = run()
    size = file.stat().st_size
    again = run()
    assert again["tokens"] == first["tokens"]
    assert (again["timings"]["cached"], again["timings"]["prompt_tokens"]) == (36, 1)
    run("-n", "0", "--prompt-cache-ro")
    assert file.stat().st_size == size
    run("--prompt-cache-all")
    assert file.stat().st_size == size + 4 * 7  # tokens; the keys and values still are in the first page
    assert cli.main([*command, "--prompt-cache-ro", "-ctk", "f16"]) == 2
    assert f"{file}: the state was computed with cache-type-k f32, and now it is f16" in capsys.readouterr().err
    assert cli.main([*command[:-1], str(tmp_path / "no.state"), "--prompt-cache-ro"]) == 2
    assert "no such file" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["prompt.state"]


def test_a_full_context_is_said(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", "-m", model, "--raw", "-p", "1 2 3 4 5 6 7 8", "-c", "64", "--ignore-eos", "--temp", "0"]
    assert cli.main([*command, "-n", "150", "--context-shift", "--keep", "4"]) == 0
    err = capsys.readouterr().err
    assert err.count("is full") == 2
    dropped = (64 - 4) // 2
    assert (
        f"the context of 64 tokens is full: after the first 4, the older half of the text is dropped ({dropped}" in err
    )
    assert f"150 tokens were asked for | {4 * dropped} tokens dropped, as the context was full" in err
    for more in ([], ["-n", "-2", "--context-shift"]):
        assert cli.main([*command, *more]) == 0
        assert "the context of 64 tokens is full" in capsys.readouterr().err
