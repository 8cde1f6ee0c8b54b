"""`lltool.open`, `convert`, `quantize` and `bench`: what they give, where they write, and what they warn of."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lltool
from lltool.gguf import hub
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.metadata import string
from lltool.gguf.source import Model, Tensor
from lltool.gguf.writer import write_gguf
from lltool.quant.importance import Importance, write_importance
from lltool.tools import cli
from tests.eval.tiny_text_model import write_text_model
from tests.tiny_checkpoints import make_checkpoint

NAMES = ("blk.0.attn_q.weight", "blk.0.ffn_up.weight")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two matrices, rows of 64, for which K-quants have no whole blocks."""
    rows = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32).view(np.uint8)
    tensors = [Tensor(name, GGMLType.F32, (8, 64), lambda start, stop: rows[start:stop]) for name in NAMES]
    write_gguf(tmp_path / "m-F32.gguf", Model({"general.architecture": string("llama")}, tensors))
    return tmp_path / "m-F32.gguf"


def types(path: Path) -> list[str]:
    with lltool.open(path) as file:
        return [tensor.type.name for tensor in file.tensors]


def test_quantize_gives_what_the_command_gives(source: Path, tmp_path: Path) -> None:
    sums = {name: np.arange(64, dtype=np.float32)[None] for name in NAMES}
    write_importance(tmp_path / "im.gguf", Importance(sums, dict.fromkeys(NAMES, np.ones(1, np.float32)), 1, 512))
    cases: list[tuple[list[str], dict[str, Any]]] = [
        ([], {}),
        (["--pure"], {"pure": True}),
        (["--imatrix", str(tmp_path / "im.gguf")], {"imatrix": tmp_path / "im.gguf"}),
        (["--tensor-type", "FFN_UP=q8_0"], {"tensor_types": {"FFN_UP": "q8_0"}}),
    ]
    for flags, options in cases:
        out = lltool.quantize(source, "q4_0", tmp_path / "ours.gguf", threads=1, **options)
        assert cli.main(["quantize", *flags, str(source), str(tmp_path / "theirs.gguf"), "q4_0"]) == 0
        assert out == tmp_path / "ours.gguf"
        assert out.read_bytes() == (tmp_path / "theirs.gguf").read_bytes(), flags
    assert types(out) == ["Q4_0", "Q8_0"]


def test_default_names(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a file; a model of the Hub's cache gives a file in the working folder."""
    assert lltool.quantize(source, "Q8_0") == source.with_name("m-Q8_0.gguf")
    monkeypatch.setattr("lltool.tools.api.inputs.find_model", lambda name: source)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert hub.parse_hub_name("org/m:F32")
    assert lltool.quantize("org/m:F32", "Q8_0") == Path("m-Q8_0.gguf")
    assert Path("m-Q8_0.gguf").exists()


def test_a_substituted_type_is_a_warning(source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It is attributed to the caller's line, nothing is printed, and `strict` makes it an error."""
    with pytest.warns(UserWarning, match="rows of 64 are not whole Q4_K blocks of 256; Q5_0 is used instead") as seen:
        lltool.quantize(source, "Q4_K_M", tmp_path / "out.gguf")
    assert {warning.filename for warning in seen} == {__file__}
    assert capfd.readouterr() == ("", "")
    with pytest.raises(lltool.InputError, match="rows of 64 are not whole Q4_K blocks"):
        lltool.quantize(source, "Q4_K_M", tmp_path / "out.gguf", strict=True)


def test_bad_types(source: Path) -> None:
    for options, message in (
        ({"type": "Q4_9"}, "file type 'Q4_9' is unknown; did you mean Q4_1"),
        ({"type": "Q4_0", "output_tensor_type": "Q9"}, "'Q9' is not a tensor type; choose one of"),
        ({"type": "Q4_0", "tensor_types": {"nothing": "Q8_0"}}, "no tensor's name matches"),
        ({"type": "Q4_0", "tensor_types": {"(": "Q8_0"}}, r"tensor type '\(=Q8_0': .* at position 0"),
        ({"type": "Q4_0", "imatrix": "none.gguf"}, "none.gguf"),
    ):
        with pytest.raises((lltool.InputError, FileNotFoundError), match=message):
            lltool.quantize(source, **options)
    assert sorted(path.name for path in source.parent.iterdir()) == [source.name]


def test_convert_gives_what_the_command_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_checkpoint("llama", tmp_path / "checkpoint", unknown_key=3)
    with pytest.warns(UserWarning, match="config.json has unknown keys, which are assumed not to matter: unknown_key"):
        out = lltool.convert(folder, tmp_path / "ours.gguf", "Q8_0")
    assert cli.main(["convert", str(folder), "-o", str(tmp_path / "theirs.gguf"), "--outtype", "q8_0"]) == 0
    assert out.read_bytes() == (tmp_path / "theirs.gguf").read_bytes()

    monkeypatch.chdir(tmp_path)
    with pytest.raises(lltool.InputError, match="file type 'Q4' is unknown; wanted one of"):
        lltool.convert(folder, type="Q4")


@pytest.mark.usefixtures("without_gpu")
def test_bench_measures_what_it_is_asked_for(tmp_path: Path) -> None:
    path = write_text_model(tmp_path / "tiny.gguf")
    with lltool.load(path, threads=1, precision="f32", cache_type_k="bf16") as model:
        result = lltool.bench(model, n_prompt=[8, 16], n_gen=4, repetitions=2, memory=False)
        frame = result.to_pandas()
        assert [row.test for row in result] == ["pp8", "pp16", "tg4"]
        assert frame["n_prompt"].tolist() == [8, 16, 0]
        assert set(frame["model_filename"]) == {str(path)}
        assert (frame["n_threads"] == 1).all()
        assert set(frame["type_k"]) == {"bf16"}
        assert [row.precision for row in result] == ["f32"] * 3
        assert (frame["avg_ts"] > 0).all()
        assert "pp16" in str(result)
        assert [row.ran["n_threads"] for row in lltool.bench(
            [model, path], n_prompt=8, n_gen=0, repetitions=1, memory=False, threads=[1, 2]
        )] == [1, 2] * 2  # fmt: skip
    with pytest.warns(UserWarning, match="-ngl 99: no GPU was found"):
        lltool.bench(path, n_prompt=8, n_gen=0, repetitions=1, memory=False, n_gpu_layers=99, threads=1)
    with pytest.raises(lltool.InputError, match="no setting 'ngl', wanted one of batch, ubatch, threads"):
        lltool.bench(path, ngl=99)
    with pytest.raises(lltool.InputError, match="nothing to measure"):
        lltool.bench(path, n_prompt=0, n_gen=0)


def test_open(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    path = write_text_model(tmp_path / "folder" / "tiny.gguf")
    with lltool.open(tmp_path / "folder") as file:
        assert file.path == path
        assert file.metadata["general.architecture"].data == "gemma3"
    with pytest.raises(lltool.InputError, match="no such file"):
        lltool.open(tmp_path / "none.gguf")
