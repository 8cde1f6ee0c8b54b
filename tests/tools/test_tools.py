"""Tools on the command line: `lltool run` prints calls, and in `lltool chat` the user answers them."""

import io
import json
from pathlib import Path

import pytest

from lltool.engine.text.tokenizer import Tokenizer
from lltool.tools import cli
from tests.engine.calls import templates
from tests.engine.calls.scripted import bytes_vocabulary, saying, write_bytes_model

TOOLS = [
    {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
    {"type": "function", "function": {"name": "now"}},
]
WEATHER = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln"}}\n</tool_call>'
NOW = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
TOKENIZER = Tokenizer.from_gguf(bytes_vocabulary())


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """The model, and the options that give it tools."""
    model = write_bytes_model(tmp_path / "hermes.gguf", templates.HERMES)
    (tmp_path / "tools.json").write_text(json.dumps(TOOLS))
    return [str(model), "-c", "4096", "-t", "1", "--tools", str(tmp_path / "tools.json")]


def test_run_prints_text_and_calls(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with saying([f"I look.\n{WEATHER}\n{NOW}"], TOKENIZER):
        assert cli.main(["run", *files, "-p", "Weather?"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "I look."
    assert [json.loads(line) for line in out[1:]] == [
        {"name": "get_weather", "arguments": {"city": "Köln"}},
        {"name": "now", "arguments": {}},
    ]


def test_run_reports_calls_as_json(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with saying([f"<think>\nHm.\n</think>\n\n{NOW}"], TOKENIZER):
        assert cli.main(["run", *files, "-p", "Time?", "--json", "--tool-choice", "now"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["text"], report["reasoning"], report["reason"]) == ("", "Hm.", "tool_calls")
    assert [(call["name"], call["arguments"]) for call in report["calls"]] == [("now", {})]


def test_in_a_chat_the_user_answers_the_calls(
    files: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    saved = tmp_path / "chat.json"
    lines = f"Weather?\nrain\nnoon\n/save {saved}\n/load {saved}\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    with saying([f"{WEATHER}\n{NOW}", "It rains at noon."], TOKENIZER):
        assert cli.main(["chat", *files, "--tool-choice", "required"]) == 0
    out, err = capsys.readouterr()
    weather, now, answer = out.splitlines()
    assert json.loads(weather)["arguments"] == {"city": "Köln"}
    assert json.loads(now)["name"] == "now"
    assert answer == "It rains at noon."
    assert "write what get_weather gave" in err
    assert "write what now gave" in err
    assert "5 messages loaded" in err
    messages = json.loads(saved.read_text())["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "tool", "assistant"]
    assert [message["content"] for message in messages[2:4]] == ["rain", "noon"]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[", "is not JSON"),
        ("[]", "wanted a JSON list of at least one function"),
        ('[{"name": "a b"}]', "tools.0: name 'a b'"),
    ],
)
def test_a_file_without_tools_is_one_line(
    files: list[str], capsys: pytest.CaptureFixture[str], text: str, part: str
) -> None:
    Path(files[-1]).write_text(text)
    for command in ("run", "chat"):
        assert cli.main([command, *files, "-p", "x"]) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"lltool: error: {files[-1]}: ")
        assert part in err
        assert err.count("\n") == 1


def test_options_that_contradict_are_refused(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for more in (["--raw"], ["--tool-choice", "x"]):
        assert cli.main(["run", *files, "-p", "x", *more]) == 2
    raw, choice = capsys.readouterr().err.splitlines()
    assert "--tools is for a chat, but --raw only continues a prompt" in raw
    assert "tool choice 'x', wanted none, auto, required or a tool's name (get_weather, now)" in choice
