"""Checkpoint to quants in one pass: the bytes of two steps, one read for several outputs, memory, bad weights."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lltool.gguf.encode import encode_key
from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.reader import open_gguf
from lltool.quant import retype
from lltool.quant.choose import Options
from lltool.quant.convert.conversion import Wishes, convert, plan_conversions, plan_to_size, write_conversions
from lltool.quant.guidance import read_guidance
from lltool.quant.importance import Importance, write_importance
from lltool.quant.plan import Request
from lltool.quant.quantize import quantize_file
from lltool.tools.cli import main
from tests.tiny_checkpoints import make_checkpoint

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streaming") / "tiny"
    sizes = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
    return make_checkpoint("llama", folder, dtype="bfloat16", **sizes)


@pytest.fixture(scope="module")
def imatrix(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = np.random.default_rng(0)
    tensors = plan_conversions(checkpoint, ["auto"])[0].model.tensors
    names = [t for t in tensors if t.name.startswith("blk.") and len(t.shape) == 2]
    sums = {t.name: generator.uniform(0.01, 9, (1, t.columns)).astype(np.float32) for t in names}
    path = tmp_path_factory.mktemp("imatrix") / "imatrix.gguf"
    write_importance(path, Importance(sums, {name: np.ones(1, np.float32) for name in sums}, 1, 512))
    return path


def tensors_of(path: Path) -> dict[str, tuple[GGMLType, bytes]]:
    with open_gguf(path) as file:
        return {tensor.name: (tensor.type, tensor.data().tobytes()) for tensor in file.tensors}


def metadata_of(path: Path) -> dict[str, bytes]:
    with open_gguf(path) as file:
        own = ("lltool.convert.", "lltool.quantize.source", "lltool.room")
        return {k: encode_key(path, k, value) for k, value in file.metadata.items() if not k.startswith(own)}


def edited(original: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a checkpoint with changed tensors."""
    from safetensors.torch import load_file, save_file

    folder.mkdir()
    for file in original.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("pure", [False, True])
def test_one_pass_gives_what_two_steps_give(
    guided: bool, pure: bool, checkpoint: Path, imatrix: Path, tmp_path: Path
) -> None:
    guidance, options = read_guidance(imatrix) if guided else None, Options(pure)
    types = ["Q4_K_M", "Q8_0", "iq4_xs", "f16"]
    planned = plan_conversions(checkpoint, types, Wishes(options=options, guidance=guidance))
    written = write_conversions(planned, [tmp_path] * len(types))
    whole = convert(checkpoint, tmp_path / "whole.gguf")
    for type, [path] in zip(types, written, strict=True):
        assert path.name.lower() == f"tiny-{type}.gguf".lower()
        expected = quantize_file(whole, tmp_path / "two.gguf", type, options, Request(guidance)).path
        assert tensors_of(path) == tensors_of(expected)
        assert metadata_of(path) == metadata_of(expected)
    q4 = tensors_of(tmp_path / "tiny-Q4_K_M.gguf")
    assert {type for type, _ in q4.values()} == {GGMLType.F32, GGMLType.Q4_K, *([] if pure else [GGMLType.Q6_K])}


def test_rows_are_read_and_decoded_once_for_all_outputs(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = 0
    decode = retype.decode

    def count(data: np.ndarray, type: GGMLType, threads: int | None = None) -> np.ndarray:
        nonlocal weights
        found = decode(data, type, threads)
        weights += found.size
        return found

    monkeypatch.setattr(retype, "decode", count)
    planned = plan_conversions(checkpoint, ["Q4_K_M", "Q5_K_S", "Q8_0"])
    write_conversions(planned, [tmp_path] * 3)
    assert weights == sum(tensor.rows * tensor.columns for tensor in planned[0].model.tensors)


def test_each_outtype_states_its_own_file_type(checkpoint: Path, tmp_path: Path) -> None:
    found = {}
    for conversion in plan_conversions(checkpoint, ["auto", "f32", "f16", "Q6_K"]):
        found[conversion.default_path().name] = conversion.model.metadata["general.file_type"].data
    assert found == {"tiny-BF16.gguf": 32, "tiny-F32.gguf": 0, "tiny-F16.gguf": 1, "tiny-Q6_K.gguf": 18}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("outtype", ["auto", "f32", "f16", "Q8_0"])
def test_nan_and_infinity_are_refused_by_name(outtype: str, value: float, checkpoint: Path, tmp_path: Path) -> None:
    def spoil(tensors: dict[str, Any]) -> None:
        tensors[UP][37, 5] = value

    folder = edited(checkpoint, tmp_path / "bad", spoil)
    message = r"bad: blk\.1\.ffn_up\.weight: row 37 holds NaN or infinity; .*--allow-nonfinite"
    with pytest.raises(InputError, match=message):
        convert(folder, tmp_path / "m.gguf", outtype)
    assert not (tmp_path / "m.gguf").exists()


def test_a_vector_with_nan_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    def spoil(tensors: dict[str, Any]) -> None:
        tensors["model.norm.weight"][3] = float("nan")

    with pytest.raises(InputError, match=r"output_norm\.weight: row 0 holds NaN"):
        convert(edited(checkpoint, tmp_path / "bad", spoil), tmp_path / "m.gguf")


@pytest.mark.parametrize("outtype", ["auto", "f32", "f16"])
def test_plain_types_keep_nan_and_infinity_on_request(outtype: str, checkpoint: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    def spoil(tensors: dict[str, Any]) -> None:
        tensors[UP][37, 5:8] = torch.tensor([float("nan"), float("inf"), float("-inf")])

    folder = edited(checkpoint, tmp_path / "odd", spoil)
    with open_gguf(convert(folder, tmp_path / "m.gguf", outtype, Wishes(allow_nonfinite=True))) as file:
        tensor = file.tensor("blk.1.ffn_up.weight")
        dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[tensor.type.name]
        found = torch.frombuffer(bytearray(tensor.data().tobytes()), dtype=dtype).reshape(tensor.shape)
        wanted = load_file(folder / "model.safetensors")[UP].to(dtype)
    assert torch.equal(found.nan_to_num(7.0), wanted.nan_to_num(7.0))
    assert found[37, 5:8].tolist()[1:] == [float("inf"), float("-inf")]
    assert found[37, 5].isnan()
    with pytest.raises(InputError, match=r"ffn_up\.weight: row 37 holds NaN or infinity"):  # a block cannot hold it
        convert(folder, tmp_path / "q.gguf", "Q8_0", Wishes(allow_nonfinite=True))


def test_an_overflow_to_f16_names_tensor_and_row(checkpoint: Path, tmp_path: Path) -> None:
    def spoil(tensors: dict[str, Any]) -> None:
        tensors[UP][41, 2] = 70000.0

    folder = edited(checkpoint, tmp_path / "big", spoil)
    message = r"blk\.1\.ffn_up\.weight: row 41 holds weights too large for F16's half precision; .*another --outtype"
    for wishes in (Wishes(), Wishes(allow_nonfinite=True)):
        with pytest.raises(InputError, match=message):
            convert(folder, tmp_path / "m.gguf", "f16", wishes)


def test_target_takes_the_best_type_that_fits(checkpoint: Path, imatrix: Path, tmp_path: Path) -> None:
    sizes = {c.type_name: c.file_bytes for c in plan_conversions(checkpoint, ["auto", "Q8_0", "Q5_K_M", "Q2_K"])}
    for name, size in sizes.items():
        planned = plan_to_size(checkpoint, size)
        assert (planned.type_name, planned.file_bytes) == (name, size)
    assert convert(checkpoint, tmp_path / "m.gguf", "Q5_K_M").stat().st_size == sizes["Q5_K_M"]
    assert plan_to_size(checkpoint, sizes["BF16"] - 1).type_name == "Q8_0"
    with pytest.raises(InputError, match=rf"fits {sizes['Q2_K'] - 1:,} bytes; the smallest, Q2_K, .*--imatrix"):
        plan_to_size(checkpoint, sizes["Q2_K"] - 1)
    smaller = plan_to_size(checkpoint, sizes["Q2_K"] - 1, Wishes(guidance=read_guidance(imatrix)))
    assert smaller.type_name == "IQ2_M"


def test_command_writes_several_types(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["convert", str(checkpoint), "--outtype", "Q4_K_M,q8_0", "--dry-run", "--json"]) == 0
    reports = json.loads(capsys.readouterr().out)
    assert [report["file_type"] for report in reports] == ["Q4_K_M", "Q8_0"]
    assert all(report["memory"] < 2 << 30 and report["seconds"] > 0 and not report["paths"] for report in reports)
    assert main(["convert", str(checkpoint), "--outtype", "Q4_K_M,q8_0", "--split-max-size", "300K"]) == 0
    files = capsys.readouterr().out.split()
    assert sorted(files) == sorted(path.name for path in tmp_path.iterdir())
    assert {name.split("-00")[0] for name in files} == {"tiny-Q4_K_M", "tiny-Q8_0"}
    assert tensors_of(Path(files[0])) == tensors_of(convert(checkpoint, tmp_path / "one.gguf", "Q4_K_M"))
    for arguments, message in [
        (["--outtype", "Q4_K_M,Q8_0", "-o", "x.gguf"], "x.gguf: not a folder; with several types, -o must be a folder"),
        (["--outtype", "Q4_K_M,q4_k_m"], "tiny-Q4_K_M.gguf: is the target of two types; name each type once"),
        (["--outtype", "Q8_0", "--target", "1GB"], "--target chooses the type itself; leave out --outtype"),
        (["--max-memory", "1MB"], "1,000,000 bytes of memory are not enough to convert this model; it takes "),
        (["--outtype", "IQ1_S"], "IQ1_S is of no use without importance; make an importance file with"),
        (["--outtype", "Q4_Q"], "file type 'Q4_Q' is unknown; did you mean "),
    ]:
        assert main(["convert", str(checkpoint), *arguments]) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]


def write_sparse_checkpoint(original: Path, folder: Path, hidden: int, intermediate: int, layers: int) -> int:
    """A checkpoint of zeros in shards of one layer each, as sparse files; returns its bytes."""
    folder.mkdir()
    config = json.loads((original / "config.json").read_text())
    shape = {"hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers}
    (folder / "config.json").write_text(json.dumps(config | shape))
    (folder / "tokenizer.json").write_bytes((original / "tokenizer.json").read_bytes())
    heads, keys = (config["head_dim"] * config[key] for key in ("num_attention_heads", "num_key_value_heads"))
    part = {"q": (heads, hidden), "k": (keys, hidden), "v": (keys, hidden), "o": (hidden, heads)}
    mlp = {"gate": (intermediate, hidden), "up": (intermediate, hidden), "down": (hidden, intermediate)}
    shards: list[dict[str, tuple[int, ...]]] = []
    for layer in range(layers):
        base = f"model.layers.{layer}."
        shards.append({f"{base}self_attn.{key}_proj.weight": size for key, size in part.items()})
        shards[-1] |= {f"{base}mlp.{key}_proj.weight": size for key, size in mlp.items()}
        shards[-1] |= {f"{base}{n}_layernorm.weight": (hidden,) for n in ("input", "post_attention")}
    vocabulary = config["vocab_size"]
    shards[0] |= {"model.embed_tokens.weight": (vocabulary, hidden), "model.norm.weight": (hidden,)}
    shards[0] |= {"lm_head.weight": (vocabulary, hidden)}
    places, total = {}, 0
    for index, tensors in enumerate(shards):
        header, position = {}, 0
        for name, size in tensors.items():
            end = position + 2 * int(np.prod(size))
            header[name] = {"dtype": "BF16", "shape": size, "data_offsets": [position, end]}
            position, places[name] = end, f"model-{index}.safetensors"
        text = json.dumps(header).encode()
        with (folder / f"model-{index}.safetensors").open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + position)
        total += position
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return total


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory as Linux counts it")
def test_memory_stays_below_the_bound_whatever_the_size(checkpoint: Path, tmp_path: Path) -> None:
    # More than four times the default bound; a matrix of an MLP has 0.8 GB, and the output goes nowhere.
    size = write_sparse_checkpoint(checkpoint, tmp_path / "large", 8192, 49152, 4)
    assert size > 4 * (2 << 30)
    command = [sys.executable, "-m", "lltool", "convert", str(tmp_path / "large"), "-o", os.devnull, "--json"]
    plan = subprocess.run([*command, "--outtype", "Q8_0", "--dry-run"], check=True, capture_output=True)
    stated = json.loads(plan.stdout)["memory"]
    assert stated < 2 << 30
    # The peak is read within the process: what its parent had in memory before exec counts in ru_maxrss.
    program = (
        "import sys; from lltool.tools.cli import main; code = main(sys.argv[1:]); "
        "print([line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')][0]); sys.exit(code)"
    )
    run = [sys.executable, "-c", program, *command[3:-1], "--outtype", "Q8_0"]
    done = subprocess.run(run, check=True, capture_output=True, text=True)
    peak = int(done.stdout.split()[-1]) << 10
    assert 100 << 20 < peak < stated, f"{peak >> 20} MiB at most, of {size >> 20} MiB"


def test_an_interrupted_conversion_continues(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["convert", str(checkpoint), "--outtype", "Q4_K_M,Q8_0", "--resume"]
    encode, calls = retype.encode, 0

    def interrupt(rows: np.ndarray, type: GGMLType, *more: Any) -> Any:
        nonlocal calls
        calls += type == GGMLType.Q8_0
        if calls == 4:
            raise OSError(28, "No space left on device", "x")
        return encode(rows, type, *more)

    with monkeypatch.context() as patch:
        patch.setattr(retype, "encode", interrupt)
        assert main(arguments) == 2
    assert [path.name for path in tmp_path.iterdir()] == [".lltool-kept-tiny-Q4_K_M.gguf"]
    assert "the disk is full after " in capsys.readouterr().err.splitlines()[-1]
    assert main(["convert", str(checkpoint), "--outtype", "Q8_0", "-o", "other.gguf"]) == 0
    assert main(arguments) == 0
    captured = capsys.readouterr()
    found = {name: Path(name).read_bytes() for name in captured.out.split()[1:]}
    with open_gguf("tiny-Q8_0.gguf") as file:
        matrices = [number for number, tensor in enumerate(file.tensors) if tensor.type == GGMLType.Q8_0]
    assert f"continuing after {matrices[3]} of 30 tensors, which are kept" in captured.err
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*found, "other.gguf"])
    assert main([*arguments[:-1], "--force"]) == 0
    assert {name: Path(name).read_bytes() for name in found} == found


def test_a_changed_checkpoint_is_not_continued(checkpoint: Path, tmp_path: Path) -> None:
    folder = edited(checkpoint, tmp_path / "tiny", lambda tensors: None)
    target = tmp_path / "m.gguf"

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    for change in (False, True):
        with pytest.raises(KeyboardInterrupt):
            write_conversions(plan_conversions(folder, ["Q8_0"]), [target], resume=True, progress=stop)
        if change:
            (folder / "model.safetensors").touch()
        said: list[str] = []
        write_conversions(plan_conversions(folder, ["Q8_0"]), [target], resume=True, say=said.append)
        assert len(said) == (0 if change else 1)
    # without --resume, what an interrupted run left is removed
    with pytest.raises(KeyboardInterrupt):
        write_conversions(plan_conversions(folder, ["Q8_0"]), [target], resume=True, progress=stop)
    assert any(tmp_path.glob(".lltool-kept-*"))
    convert(folder, target, "Q8_0")
    assert not any(tmp_path.glob(".lltool-kept-*"))
