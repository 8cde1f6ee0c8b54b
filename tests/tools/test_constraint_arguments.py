"""`--grammar`, `--json-schema`, `--regex` of `lltool run` and `lltool chat`."""

import io
import json
import re
from pathlib import Path

import pytest

from lltool.gguf.metadata import string
from lltool.tools import cli
from tests.engine import tiny_gguf

SCHEMA = """{
    "type": "object", "properties": {"n": {"type": "integer", "minimum": 10, "maximum": 99}},
    "required": ["n"], "additionalProperties": false
}"""
GRAMMAR = 'root ::= "x"{2,4} [0-9]'
ANSWERS = {"x": r"x{2,4}[0-9]", "json": r'\{"n":[0-9]{2}\}'}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    keys = {
        **tiny_gguf.metadata(),
        **tiny_gguf.vocabulary(),
        "tokenizer.chat_template": string("{% for m in messages %}{{ m.content }}{% endfor %}>"),
    }
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    tiny_gguf.write_model(path, keys, tiny_gguf.tensors())
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    for name, text in (("g.gbnf", GRAMMAR), ("s.json", SCHEMA), ("g.lark", "%llguidance {}\nstart: /x{2,4}[0-9]/")):
        (tmp_path / name).write_text(text)
    return {name: str(tmp_path / name) for name in ("g.gbnf", "s.json", "g.lark")}


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        (["--grammar", GRAMMAR], "x"),
        (["--grammar-file", "g.gbnf"], "x"),
        (["--grammar-file", "g.lark"], "x"),
        (["--regex", "x{2,4}[0-9]"], "x"),
        (["-j", SCHEMA], "json"),
        (["--json-schema", SCHEMA], "json"),
        (["-jf", "s.json"], "json"),
        (["--json-schema-file", "s.json"], "json"),
    ],
)
def test_the_answer_follows_the_constraint(
    model: str, files: dict[str, str], flags: list[str], kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [files.get(flag, flag) for flag in flags]
    for raw in ([], ["--raw", "--no-display-prompt"]):
        assert cli.main(["run", "-m", model, "-p", "abc", "--temp", "1.5", "-n", "60", *flags, *raw]) == 0
        out, err = capsys.readouterr()
        assert re.fullmatch(ANSWERS[kind] + "\n", out)
        assert "what the grammar describes is complete" in err


def test_the_report_says_why_it_ended(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "-m", model, "-p", "abc", "--json", "-j", SCHEMA]) == 0
    report = json.loads(capsys.readouterr().out)
    assert 10 <= json.loads(report["text"])["n"] <= 99
    assert (report["reason"], report["detail"]) == ("stop", "what the grammar describes is complete")


def test_each_answer_of_a_chat_follows_it(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"abc\ndef\n")))
    assert cli.main(["chat", "-m", model, "--grammar", GRAMMAR, "--temp", "1.5", "--no-history"]) == 0
    lines = capsys.readouterr().out.split()
    assert len(lines) == 2
    assert all(re.fullmatch(ANSWERS["x"], line) for line in lines)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--grammar", "root ::= x"], "grammar: rule 'root': no rule 'x'"),
        (["--regex", "(a"], "regular expression: "),
        (["-j", "{"], "JSON schema: is not JSON"),
        (["-j", '{"not": {}}'], 'JSON schema: Unimplemented keys: ["not"]'),
        (["-j", "{}", "--regex", "a"], "--json-schema and --regex: an answer can have one constraint"),
        (["--grammar-file", "/none.gbnf"], "/none.gbnf"),
    ],
)
@pytest.mark.parametrize("command", ["run", "chat"])
def test_what_cannot_be_honoured_is_one_line(
    model: str, command: str, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([command, "-m", model, "-p", "abc", *flags]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("lltool: error: ")
    assert message in err
    assert err.count("\n") == 1


def test_the_missing_package_is_named(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lltool.gguf.optional.find_spec", lambda name: None)
    assert cli.main(["run", "-m", model, "-p", "abc", "--regex", "a"]) == 2
    assert "needs llguidance, which is not installed; pip install 'lltool[grammar]'" in capsys.readouterr().err
