"""How commands are told their model, and where what they make from a model on the Hub goes."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lltool.tools import cli
from lltool.tools.arguments import folder_beside
from tests.eval.tiny_text_model import write_text_model
from tests.gguf.test_hub import disconnect, use
from tests.hub_server import Hub, serve


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub with a repository of two types, in a folder of its own."""
    (tmp_path / "repository").mkdir()
    for type in ("Q8_0", "F32"):
        write_text_model(tmp_path / "repository" / f"m-{type}.gguf")
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    with serve(Hub({"team/model": tmp_path / "repository"})) as hub:
        use(monkeypatch, hub, tmp_path / "cache")
        yield hub


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    return write_text_model(tmp_path / "folder" / "m.gguf")


def ids(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(["tokenize", *words, "-p", "ab", "--ids"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [("folder/m.gguf",), ("folder",), ("-m", "folder/m.gguf"), ("--model", "folder"), ("--model=folder",)]
)
def test_a_file_or_folder_is_named_in_any_way(
    words: tuple[str, ...], model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ids(capsys, *words) == "[65, 66]\n"


@pytest.mark.parametrize(
    ("words", "file"),
    [
        (("team/model:F32",), "m-F32.gguf"),
        (("-m", "team/model:Q8_0"), "m-Q8_0.gguf"),
        (("-hf", "team/model"), "m-Q8_0.gguf"),
        (("-hfr", "team/model:f32"), "m-F32.gguf"),
        (("--hf-repo", "team/model", "-hff", "m-F32.gguf"), "m-F32.gguf"),
    ],
)
def test_a_model_on_the_hub_is_named_as_in_llama_cpp(
    words: tuple[str, ...], file: str, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["tokenize", *words, "-p", "ab", "--json"]) == 0
    assert Path(json.loads(capsys.readouterr().out)["model"]).name == file


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no model is named; wanted a GGUF file, a folder with one, or the id of one on the Hub"),
        (["folder", "more"], "'more' is one argument too many"),
        (["-m", "folder", "-hf", "team/model"], "folder and hf://team/model: options name 2 models, wanted one"),
        (["-hff", "x.gguf"], "-hff names a file of a model on the Hub; name the model with -hf"),
        (["-hf", "X"], "hf://X: wanted hf:// and then ORG/NAME, ORG/NAME:TYPE or ORG/NAME/FILE.gguf"),
        (["folder/n.gguf"], "folder/n.gguf: no such file; folder has m.gguf"),
        (["./folder/m.ggfu"], "folder/m.ggfu: no such file; did you mean folder/m.gguf?"),
        (["foldr"], "foldr: no such file or folder; did you mean folder?"),
    ],
)
def test_bad_names_are_one_line(
    words: list[str], message: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["tokenize", *words, "-p", "x"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"lltool: error: {message}")
    assert err.count("\n") == 1


def test_what_is_made_from_a_model_on_the_hub_goes_to_the_current_folder(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["quantize", "-hf", "team/model:F32", "Q8_0"]) == 0
    out = capsys.readouterr().out
    assert [path.name for path in (tmp_path / "work").iterdir()] == [Path(out.strip()).name]
    assert folder_beside(Path("a/models--x/snapshots/1/m.gguf")) == Path()
    assert folder_beside(Path("a/m.gguf")) == Path("a")


def test_offline_takes_what_the_cache_has(hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    assert cli.main(["tokenize", "team/model:F32", "-p", "x", "--ids"]) == 0
    assert capsys.readouterr().out == "[88]\n"
    disconnect(monkeypatch)
    assert cli.main(["tokenize", "team/model:F32", "-p", "x", "--ids", "-q"]) == 0
    assert capsys.readouterr() == ("[88]\n", "")


@pytest.mark.parametrize("words", [("folder", "Q8_0"), ("-m", "folder", "Q8_0"), ("Q8_0", "--model", "folder/m.gguf")])
def test_quantize_takes_the_model_first_or_as_an_option(
    words: tuple[str, ...], model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["quantize", *words]) == 0
    assert Path(capsys.readouterr().out.strip()).parent == Path("folder")


def test_the_report_goes_to_a_file_whole(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = model.with_name("text.txt")
    text.write_text("The quick brown fox jumps over the lazy dog. " * 4)
    line = ["perplexity", "folder", "-f", str(text), "-c", "32", "--json"]
    assert cli.main([*line, "-o", "report.json"]) == 0
    out = capsys.readouterr().out
    assert out == ""
    assert json.loads(Path("report.json").read_text())["perplexity"] > 1
    assert cli.main([*line, "-o", "none/report.json"]) == 2
    assert "none: no such folder; make it first" in capsys.readouterr().err
    assert cli.main([*line, "-o", "csv"]) == 2
    assert "'csv' is a format; wanted --format csv, or -o ./csv for a file" in capsys.readouterr().err
