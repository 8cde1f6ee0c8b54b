"""Whole conversions: types, file names, and cleanup after failures."""

import json
from pathlib import Path

import numpy as np
import pytest

from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.reader import open_gguf
from lltool.quant.codec import decode, encode
from lltool.quant.convert.conversion import Wishes, convert, plan_conversion
from lltool.quant.quantize import quantize_file
from lltool.tools.cli import main
from tests.tiny_checkpoints import make_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("llama", tmp_path_factory.mktemp("convert") / "tiny", dtype="bfloat16")


def test_auto_keeps_the_precision(checkpoint: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    with open_gguf(convert(checkpoint, tmp_path / "m.gguf")) as file:
        types = {(len(tensor.shape), tensor.type) for tensor in file.tensors}
        assert types == {(1, GGMLType.F32), (2, GGMLType.BF16)}
        assert file.metadata["general.file_type"].data == 32
        embedding = load_file(checkpoint / "model.safetensors")["model.embed_tokens.weight"]
        assert file.tensors[0].data().tobytes() == embedding.view(torch.uint8).numpy().tobytes()
        assert file.metadata["lltool.convert.source"].data == "tiny"


@pytest.mark.parametrize("outtype", ["f32", "f16", "q8_0", "q4_0", "q5_1"])
def test_outtype_is_the_encoded_checkpoint(outtype: str, checkpoint: Path, tmp_path: Path) -> None:
    plain = convert(checkpoint, tmp_path / "plain.gguf", "f32")
    made = convert(checkpoint, tmp_path / "made.gguf", outtype)
    with open_gguf(plain) as source, open_gguf(made) as file:
        for wanted, found in zip(source.tensors, file.tensors, strict=True):
            type = GGMLType[outtype.upper()] if len(wanted.shape) > 1 else GGMLType.F32
            if wanted.name == "output.weight" and outtype in ("q4_0", "q5_1"):
                type = GGMLType.Q8_0  # the recipe's Q6_K has blocks of 256, a row has 64
            assert found.type == type
            values = decode(wanted.data(), GGMLType.F32)
            np.testing.assert_array_equal(found.data(), encode(values, type))


def test_fallback_is_noted_or_refused(checkpoint: Path) -> None:
    assert plan_conversion(checkpoint, "q4_0").notes == [
        "output.weight: rows of 64 are not whole Q6_K blocks of 256; Q8_0 is used instead (+0.0 MiB)"
    ]
    with pytest.raises(InputError, match=r"output\.weight: rows of 64 are not whole .*; drop --strict to accept that"):
        plan_conversion(checkpoint, "q4_0", Wishes(strict=True))


@pytest.mark.parametrize("type", ["q4_1", "q6_k", "q8_0"])
def test_convert_and_quantize_agree(type: str, checkpoint: Path, tmp_path: Path) -> None:
    made = convert(checkpoint, tmp_path / "made.gguf", type)
    quantize_file(convert(checkpoint, tmp_path / "bf16.gguf"), tmp_path / "quantized.gguf", type)
    with open_gguf(made) as one, open_gguf(tmp_path / "quantized.gguf") as other:
        for ours, theirs in zip(one.tensors, other.tensors, strict=True):
            assert (ours.name, ours.type) == (theirs.name, theirs.type)
            np.testing.assert_array_equal(ours.data(), theirs.data())


def test_no_file_of_the_checkpoint_is_overwritten(tmp_path: Path) -> None:
    folder = make_checkpoint("llama", tmp_path / "tiny")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool.jinja").write_text("{{ messages }}")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert len(before) > 5
    for path in before:
        with pytest.raises(InputError, match=f"{path.name}: would overwrite its own source"):
            convert(folder, path)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    first = convert(folder, folder / "m.gguf").read_bytes()
    assert convert(folder, folder / "m.gguf").read_bytes() == first


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = make_checkpoint("llama", tmp_path / "tiny")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 2] = 1e5
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"blk\.1\.ffn_up\.weight: row 3 "):
        convert(folder, tmp_path / "m.gguf", "f16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny"]
    convert(folder, tmp_path / "m.gguf", "bf16")


def test_command(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["convert", str(checkpoint), "--dry-run"]) == 0
    assert list(tmp_path.iterdir()) == []
    assert main(["convert", str(checkpoint)]) == 0
    assert capsys.readouterr().out == "tiny-BF16.gguf\n"
    assert main(["convert", str(checkpoint), "--outtype", "Q8_0", "-o", "x.gguf", "--split-max-size", "100K"]) == 0
    shards = capsys.readouterr().out.split()
    assert len(shards) > 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny-BF16.gguf", *shards]
    with open_gguf(shards[0]) as file:
        assert len(file.tensors) == 30
    assert main(["convert", str(checkpoint), "--json", "--outtype", "q4_0"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["paths"], report["file_type"]) == (["tiny-Q4_0.gguf"], "Q4_0")
    assert report["notes"][0].startswith("output.weight: rows of 64")
    with open_gguf("tiny-Q4_0.gguf") as file:
        found = [{"name": t.name, "shape": list(t.shape), "type": t.type.name} for t in file.tensors]
        assert report["tensors"] == found
        assert report["bytes"] == sum(t.nbytes for t in file.tensors)
    assert main(["convert", str(checkpoint), "--json", "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["paths"] == []
    assert main(["convert", "none"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "lltool: error: none: no such file or folder; wanted a checkpoint's folder, or its id on the Hub, ORG/NAME"
    )
