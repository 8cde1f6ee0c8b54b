"""`lltool convert` of a GGUF file: the bytes that `lltool quantize` and `lltool split` write."""

from pathlib import Path

import numpy as np
import pytest

from lltool.gguf.reader import open_gguf
from lltool.tools.cli import main
from tests.engine.tiny_gguf import metadata, tensors, vocabulary, write_model


def tensors_of(path: Path) -> dict[str, tuple[int, bytes]]:
    with open_gguf(path) as file:
        return {tensor.name: (tensor.type, np.asarray(tensor.data()).tobytes()) for tensor in file.tensors}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model-F32.gguf", metadata() | vocabulary(), tensors())


def test_several_types_are_those_of_quantize(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert main(["convert", str(model), "-o", str(out), "--outtype", "Q8_0,q4_0", "--resume"]) == 0
    assert capsys.readouterr().out.split() == [str(out / "model-Q8_0.gguf"), str(out / "model-Q4_0.gguf")]
    for type in ("Q8_0", "Q4_0"):
        assert main(["quantize", str(model), str(tmp_path / "q.gguf"), type]) == 0
        assert tensors_of(out / f"model-{type}.gguf") == tensors_of(tmp_path / "q.gguf")


def test_shards_keep_every_tensor(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(model), "-o", str(tmp_path / "s.gguf"), "--split-max-size", "40000"]) == 0
    paths = capsys.readouterr().out.split()
    assert len(paths) > 1
    assert tensors_of(Path(paths[0])) == tensors_of(model)


def test_a_quantized_source_is_noted(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", str(model), str(tmp_path / "q8.gguf"), "Q8_0"]) == 0
    capsys.readouterr()
    assert main(["convert", str(tmp_path / "q8.gguf"), "-o", str(tmp_path / "q4.gguf"), "--outtype", "Q4_0"]) == 0
    said = capsys.readouterr().err
    assert "21 tensors are Q8_0 already and are quantized again" in said
    assert "is a GGUF file, which is converted as `lltool quantize` does" in said


def test_a_size_chooses_the_largest_usual_type(model: Path, tmp_path: Path) -> None:
    made, sized = tmp_path / "made.gguf", tmp_path / "sized.gguf"
    assert main(["convert", str(model), "-o", str(made), "--outtype", "Q5_K_M"]) == 0
    for less, type in ((0, "Q5_K_M"), (1, "Q5_K_S")):
        assert main(["convert", str(model), "-o", str(sized), "--target", str(made.stat().st_size - less)]) == 0
        with open_gguf(sized) as file:
            assert file.metadata["lltool.quantize.recipe"].data == type


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "say its new type (--outtype) or its new name (-o)"),
        (["--outtype", "Q8_0", "--pre", "gpt-2"], "--pre is for a checkpoint, and this is a GGUF file"),
        (["--outtype", "Q8_0", "--verify"], "run lltool verify with its folder"),
        (["--target", "1000"], "no type fits 1,000 bytes"),
    ],
)
def test_what_a_gguf_file_cannot_do_is_one_line(
    options: list[str], said: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(model), *options]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert "\n" not in error
