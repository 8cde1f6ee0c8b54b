"""`lltool tokenize`: its three ways to print tokens."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lltool.quant.convert.vocabulary import read_vocabulary
from lltool.tools import cli
from tests.engine.tiny_gguf import metadata, tensors, write_model
from tests.tokenizer_kinds import save, wordpiece

TEXT = "Hé<|im_end|>🚀"


@pytest.fixture(scope="module")
def models(real_model: Callable[[str], Path]) -> dict[str, str]:
    return {name: str(real_model(name)) for name in ("smollm2-q4_1", "gemma3-270m-q4_k_m")}


def test_prints_ids_and_pieces(models: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tokenize", "-m", models["smollm2-q4_1"], "-p", TEXT, "--show-count"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "    56 -> 'H'",
        "  2756 -> 'é'",
        "     2 -> '<|im_end|>'",
        r" 10813 -> '\xf0\x9f'",
        r"   244 -> '\x9a'",
        r"   218 -> '\x80'",
        "Total number of tokens: 6",
    ]


def test_prints_a_list_of_ids(models: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    gemma = ["tokenize", "-m", models["gemma3-270m-q4_k_m"], "-p", "Hello", "--ids"]
    assert cli.main(gemma) == 0
    assert capsys.readouterr().out == "[2, 9259]\n"
    assert cli.main([*gemma, "--no-bos"]) == 0
    assert capsys.readouterr().out == "[9259]\n"


def test_json_of_a_file_and_of_standard_input(
    models: dict[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    for source in (["-f", str(path)], ["--stdin"]):
        assert cli.main(["tokenize", "-m", models["smollm2-q4_1"], *source, "--json", "--no-parse-special"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["count"] == len(report["tokens"]) > 5
        assert 2 not in [token["id"] for token in report["tokens"]]


def test_texts_are_read_by_one_rule(
    models: dict[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "\ufeffa\r\nb"
    path = tmp_path / "text.txt"
    path.write_bytes(text.encode())
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    for source in (["-f", str(path)], ["--stdin"], ["-p", text], ["-p", r"a\nb"]):
        assert cli.main(["tokenize", "-m", models["smollm2-q4_1"], *source]) == 0
        pieces = [line.split(" -> ")[1] for line in capsys.readouterr().out.splitlines()]
        assert pieces == ["'a'", r"'\n'", "'b'"]


def test_a_begin_token_that_is_written_is_not_added(models: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    gemma = ["tokenize", "-m", models["gemma3-270m-q4_k_m"], "--ids", "-p", "<bos>Hello"]
    assert cli.main(gemma) == 0
    assert capsys.readouterr().out == "[2, 9259]\n"
    assert cli.main([*gemma, "--no-parse-special"]) == 0
    assert capsys.readouterr().out.startswith("[2, 236820, ")


def test_bad_input_is_one_line(models: dict[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "latin1.txt"
    path.write_bytes(b"caf\xe9")
    for arguments, message in (
        (["-m", models["smollm2-q4_1"]], "one of the arguments -p/--prompt -f/--file --stdin is required"),
        (["-m", models["smollm2-q4_1"], "-f", str(path)], "byte 3 is not UTF-8"),
        (["-m", str(path), "-p", "x"], "not a GGUF file"),
    ):
        assert cli.main(["tokenize", *arguments]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("lltool: error: ")
        assert message in err
        assert err.count("\n") == 1


def test_pieces_of_a_wordpiece_vocabulary_have_their_spaces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(wordpiece(), tmp_path)
    path = write_model(tmp_path / "m.gguf", metadata() | read_vocabulary(tmp_path, {}, 1600).metadata(), tensors())
    assert cli.main(["tokenize", "-m", str(path), "-p", "The dog's"]) == 0
    pieces = [line.partition(" -> ")[2] for line in capsys.readouterr().out.splitlines()]
    assert pieces == ["'[CLS]'", "' the'", "' do'", "'g'", "' ''", "' s'", "'[SEP]'"]
