"""`lltool chat` from a pipe: commands, blocks, Ctrl-C, and one line for each error."""

import io
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lltool.gguf.metadata import u32
from lltool.tools import cli
from lltool.tools.chat_input import is_open, unquoted
from tests.eval.tiny_text_model import write_text_model
from tests.tools.chat_model import CONTEXT, EXACT, write_repeating


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_repeating(tmp_path_factory.mktemp("model") / "tiny.gguf")


Pipe = Callable[..., tuple[int, list[str], str]]


@pytest.fixture
def pipe(model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Pipe:
    """Runs a chat on what is piped into it: its exit code, the lines of stdout, and stderr."""

    def run(text: str, *options: str, command: str = "chat") -> tuple[int, list[str], str]:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        code = cli.main([command, model, *EXACT, "-n", "4", *options])
        out, err = capsys.readouterr()
        return code, out.splitlines(), err

    return run


@pytest.fixture
def saved(pipe: Pipe, tmp_path: Path) -> Callable[..., list[tuple[str, str]]]:
    """The messages after a chat on what is piped into it."""

    def run(text: str, *options: str) -> list[tuple[str, str]]:
        path = tmp_path / "saved.json"
        code, _, err = pipe(f"{text}\n/save {path}\n", *options)
        assert code == 0, err
        return [(each["role"], each["content"]) for each in json.loads(path.read_text())["messages"]]

    return run


def test_a_pipe_gets_only_answers(pipe: Pipe) -> None:
    assert pipe("Hi\n\n  \nAnd you?\n") == (0, ["8888"] * 2, "")


def test_a_first_message_can_be_given(pipe: Pipe, tmp_path: Path) -> None:
    assert pipe("And?\n", "-p", "Hi")[1] == ["8888"] * 2
    path = tmp_path / "first.txt"
    path.write_text("Hi\n")
    assert pipe("/stats\n", "-f", str(path))[2].startswith("[prompt 9 tokens")


def test_run_leads_to_the_same_chat(pipe: Pipe) -> None:
    assert pipe("Hi\n/stats\n", "-i", command="run")[2].startswith("[prompt 9 tokens")
    assert pipe("Hi\n/x\n", "-i", command="run")[0] == 2


@pytest.mark.parametrize(
    ("typed", "sent"),
    [
        ("a line", ["a line"]),
        (" spaces  stay ", [" spaces  stay "]),
        ('"""\na\n\n /b\n"""\nc', ["a\n\n /b", "c"]),
        ('"""one line"""', ["one line"]),
        ('"""a\nb"""', ["a\nb"]),
        ('say """ and\nx', ['say """ and', "x"]),
        ("//help", ["/help"]),
        (" /help", ["/help"]),
        ("a\r\nb", ["a", "b"]),
    ],
)
def test_a_message_is_a_line_or_a_block(
    saved: Callable[..., list[tuple[str, str]]], typed: str, sent: list[str]
) -> None:
    assert [content for role, content in saved(typed) if role == "user"] == sent


def test_blocks() -> None:
    assert [is_open(text) for text in ('"""', '"""a', '/system """a\n', '/set system """')] == [True] * 4
    assert [is_open(text) for text in ("", "a", '"""a"""', '""""""', '/set top_k 3 """', 'a"""')] == [False] * 6
    assert unquoted('"""\n"quoted"\n"""') == '"quoted"'
    assert unquoted('"""a"""b') == '"""a"""b'


def test_a_block_without_an_end_is_an_error(pipe: Pipe) -> None:
    code, out, err = pipe('Hi\n"""\nnever closed\n')
    assert (code, out) == (2, ["8888"])
    assert err == 'lltool: error: standard input: ends in a block; wanted """ at the end of its last line\n'


def test_the_chat_goes_on_after_an_error_and_a_pipe_learns_of_it(pipe: Pipe) -> None:
    code, out, err = pipe(f"{'x' * 300}\nHi\n", "-c", "256")
    assert (code, out) == (2, ["8888"])
    assert "the message has 307 tokens and the context 256; shorten" in err


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("/hlep", "no command /hlep; did you mean /help?"),
        ("/xyzzy", "no command /xyzzy; /help lists the commands. Begin a message with // if"),
        ("/usr/bin is what?", "no command /usr/bin; /help lists"),
        ("/", "no command /; /help lists"),
        ("/clear all", "/clear takes no argument, found 'all'"),
        ("/bye now", "/exit takes no argument, found 'now'"),
        ("/regen", "there is no message to answer again"),
        ("/stats", "there is no answer yet"),
        ("/stats often", "/stats often, wanted on, off"),
        ("/save", "/save wants the name of a file"),
        ("/save no-such-folder/x", "no-such-folder: no such folder"),
        ("/load no-such-file", "no-such-file: No such file or directory"),
        ("/load /", "/: a folder"),
        ("/read no-such-file", "no-such-file: No such file or directory"),
        ("/read ~nobody-of-this-name/x", "~nobody-of-this-name/x: No such file or directory"),
        ("/set warmth 3", "no setting 'warmth'; wanted temperature, top_k"),
        ("/set temprature 3", "no setting 'temprature'; did you mean 'temperature'?"),
        ("/set temperature warm", "temperature 'warm', wanted a number (0 takes the likeliest token)"),
        ("/set temperature -1", "temperature -1.0, wanted a number from 0"),
        ("/set top_k 1.5", "top_k '1.5', wanted a whole number"),
        ("/set seed -2", "seed -2, wanted at least 0"),
        ("/set max_tokens -2", "max_tokens -2, wanted a number of tokens, or -1"),
    ],
)
def test_a_bad_command_is_one_error(pipe: Pipe, entry: str, message: str) -> None:
    code, out, err = pipe(f"{entry}\nHi\n")
    assert (code, out) == (2, ["8888"])
    assert err.startswith(f"lltool: error: {message}")
    assert err.count("\n") == 1


def test_settings_are_shown_and_changed(pipe: Pipe) -> None:
    _, _, err = pipe("/set\n", "-s", "7", "-sys", "Be\nbrief")
    *lines, others = err.splitlines()
    assert others.startswith("as usual:    typical_p, top_n_sigma, xtc_probability")
    rows = dict(line.split(maxsplit=1) for line in lines if not line.startswith("brief"))
    assert list(rows) == ["temperature", "top_k", "top_p", "min_p", "seed", "max_tokens", "stop", "system"]
    assert [rows[name].split("  (")[0] for name in rows] == ["0.0", "40", "0.95", "0.05", "7", "4", "none", "Be"]
    _, _, err = pipe(
        "/set repetition_penalty 1.1\n/set logit_bias 3+1,4-inf\n/set sampling_seq kt\n/set mirostat 3\n/set\n"
    )
    assert err.splitlines()[:3] == ["repeat_penalty 1.1", "logit_bias   3+1,4-inf", "samplers     top_k;temperature"]
    assert err.splitlines()[3] == "lltool: error: mirostat 3, wanted a number from 0 to 2"
    assert "repeat_penalty 1.1  (" in err
    changes = ["temp 0.3", "top-k 3", "parameter top_p 0.5", "num_predict 2", "seed 5", r"stop \n", 'system """a\nb"""']
    _, _, err = pipe("".join(f"/set {change}\n" for change in changes))
    shown = "temperature 0.3|top_k 3|top_p 0.5|max_tokens 2|seed 5|stop '\\n'|system a|b"
    assert "|".join(" ".join(line.split()) for line in err.splitlines()) == shown
    _, _, err = pipe('/set seed -1\n/set max_tokens -1\n/set stop ""\n/system ""\n/system\n', "-s", "7", "-r", "x")
    values = [line.split(maxsplit=1)[1] for line in err.splitlines()]
    assert values[0] != "7"
    assert values[1:] == ["no limit", "none", "none", "none"]


def test_settings_take_effect(pipe: Pipe, saved: Callable[..., list[tuple[str, str]]]) -> None:
    assert pipe("Hi\n/set n 2\nHi\n/set stop 8\nHi\n")[1] == ["8888", "88", ""]
    assert saved("/system Be brief\nHi") == [("system", "Be brief"), ("user", "Hi"), ("assistant", "8888")]
    hot = "/set temperature 99\n/set top_k 0\n/set top_p 1\n/set min_p 0\n"
    first, second, third = pipe(f"{hot}/set seed 1\nHi\n/regen\n/set seed 1\n/regen\n")[1]
    assert first == third != second


def test_regen_clear_and_stats(pipe: Pipe) -> None:
    code, out, err = pipe("Hi\n/stats\n/regen\n/stats\n/clear\nHi\n/stats\n/bye\nnever read\n")
    assert (code, out) == (0, ["8888"] * 3)
    lines = [line for line in err.splitlines() if line.startswith(("[prompt", "[1"))]
    assert [line.split(",")[0] for line in lines if "prompt" in line] == [
        "[prompt 9 tokens",
        "[prompt 1 and 8 cached tokens",
        "[prompt 9 tokens",  # as /clear has freed them
    ]
    assert [line for line in lines if "prompt" not in line] == [
        "[12 of 4096 tokens of the context in use | 2 messages]"
    ] * 3
    assert pipe("/stats on\nHi\n/stats off\nHi\n")[2].count("[prompt") == 1
    assert pipe("Hi\nHi\n", "--stats")[2].count("[prompt") == 2


def test_a_conversation_is_saved_and_loaded(pipe: Pipe, tmp_path: Path) -> None:
    path = tmp_path / "saved file.json"
    _, _, err = pipe(f"Hi\n/save {path}\n/clear\n/load {path}\nAnd?\n/stats\n")
    assert f"2 messages saved in {path}\n" in err
    assert f"2 messages loaded from {path}\n" in err
    assert "| 4 messages]" in err
    path.write_text('[{"role": "user", "content": "Hi"}]')
    code, out, err = pipe(f"/load {path}\n/regen\n")
    assert (code, out) == (0, ["8888"])
    assert err.endswith("; /regen answers the last one\n")


def test_a_text_file_goes_before_the_next_message(
    saved: Callable[..., list[tuple[str, str]]], pipe: Pipe, tmp_path: Path
) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes("\ufeffone\r\ntwo\n".encode())
    messages = saved(f"/read {path}\n/read {path}\nWhat is this?\nAnd now?")
    assert [text for role, text in messages if role == "user"] == [
        "one\ntwo\n\none\ntwo\n\nWhat is this?",
        "And now?",
    ]
    assert pipe(f"/read {path}\n")[2] == f"lltool: note: {path}: 7 tokens go before the next message\n"


def test_a_full_context_is_said(pipe: Pipe) -> None:
    _, out, err = pipe("x\n" * 2, "-c", "64", "-n", "-1")
    assert "the answer is cut off: the context of 64 tokens is full" in err
    assert "the context is full; the model no longer sees the oldest 2 messages" in err
    assert len(out) == 2


def test_ctrl_c_ends_a_chat_from_a_pipe(model: str) -> None:
    command = [sys.executable, "-m", "lltool", "chat", model, *EXACT, "-c", str(CONTEXT)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(b"Hi\n")
        process.stdin.flush()
        assert process.stdout.read(4) == b"8888"
        process.send_signal(signal.SIGINT)
        assert (process.wait(30), process.stderr and process.stderr.read()) == (130, b"lltool: interrupted\n")


def test_no_prompt_toolkit_without_a_terminal(model: str) -> None:
    code = (
        "import sys; from lltool.tools import cli; cli.main(sys.argv[1:]); "
        "sys.exit(' '.join(name for name in sys.modules if name == 'prompt_toolkit'))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, "chat", model, "-n", "2", *EXACT], input=b"Hi\n", capture_output=True, check=False
    )
    assert (run.stdout, run.stderr.strip()) == (b"88\n", b"")


# On a terminal.


def test_one_model_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        ([], "no model is named; wanted a GGUF file"),
        (["-m", "a.gguf", "-m", "b.gguf"], "a.gguf and b.gguf: options name 2 models, wanted one"),
    ):
        assert cli.main(["chat", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_a_model_without_a_template_cannot_chat(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_text_model(tmp_path / "base.gguf", **{"tokenizer.chat_template": u32(0)})
    assert cli.main(["chat", str(path), "-p", "Hi"]) == 2
    assert "tokenizer.chat_template is missing" in capsys.readouterr().err
