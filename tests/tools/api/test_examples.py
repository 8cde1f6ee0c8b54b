"""The examples in the documentation of the front door, and in the README, on a real model."""

import doctest
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

import lltool
from lltool.eval.common.text import SAMPLE_TEXT
from lltool.quant.convert.export import export
from tests.docs.examples import REPOSITORY, read_programs
from tests.encoder_checkpoints import RERANKERS, make_encoder
from tests.tiny_checkpoints import make_checkpoint

NAME = "SmolLM2-135M-Instruct-Q4_1.gguf"


@pytest.fixture(scope="module")
def folder(real_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with what the examples name."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / NAME).symlink_to(real_model("smollm2-q4_1"))
    (folder / "text.txt").write_text(SAMPLE_TEXT.read_text(encoding="utf-8")[:6000], encoding="utf-8")
    make_checkpoint("llama", folder / "checkpoint")
    lltool.convert(make_encoder(RERANKERS["bert"], folder / "encoder"), folder / "reranker.gguf")
    lltool.quantize(folder / NAME, "Q8_0", folder / "small.gguf", allow_requantize=True)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[lltool.Model]:
    with lltool.load(folder / NAME, context=2048) as model:
        yield model


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in lltool.__all__ if name not in ("InputError", "FileChanged")])
def test_examples_in_docstrings(name: str, folder: Path, model: lltool.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    names = {"lltool": lltool, "model": model, "text": SAMPLE_TEXT}
    found = doctest.DocTestFinder().find(getattr(lltool, name), name, module=False, globs=names)  # type: ignore[arg-type]
    runner = doctest.DocTestRunner(verbose=False)
    printed = StringIO()
    for test in found:
        runner.run(test, out=printed.write)
    assert runner.failures == 0, printed.getvalue()


def test_every_method_has_an_example() -> None:
    parts = [lltool.open, lltool.convert, lltool.quantize, lltool.load, lltool.bench, lltool.Stream]
    parts += [lltool.quantize_array, lltool.dequantize_array, lltool.find_model]
    parts += [value for name, value in vars(lltool.Model).items() if callable(value) and not name.startswith("_")]
    without = [part.__qualname__ for part in parts if ">>> " not in (part.__doc__ or "")]
    assert without == ["Model.close"]


@pytest.mark.slow
def test_python_in_the_readme(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = read_programs(REPOSITORY / "README.md")
    monkeypatch.chdir(folder)
    Path("path/to").mkdir(parents=True)
    export(folder / NAME, folder / "path" / "to" / "checkpoint")
    printed = StringIO()
    with redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    assert "Paris" in printed.getvalue()
    assert Path("model.gguf").stat().st_size > Path("small.gguf").stat().st_size
