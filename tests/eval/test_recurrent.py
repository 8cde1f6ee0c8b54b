"""A tiny model with scans, attention and experts through the commands: importance, quantization, damage, the bench."""

from pathlib import Path

import numpy as np
import pytest

from lltool.engine.model import load_model
from lltool.eval.bench.run.plan import resolve
from lltool.eval.bench.run.runner import Runner
from lltool.eval.bench.settings import Settings, Workload
from lltool.eval.search.sensitivity import pick_windows, probe
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.reader import open_gguf
from lltool.quant.convert.conversion import convert
from lltool.quant.importance import read_importance
from lltool.tools.cli import main
from tests.tiny_checkpoints import make_checkpoint
from tests.tiny_tokenizers import TEXT

CONTEXT = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 model `m.gguf` whose matrices can have any type, and a text."""
    folder = tmp_path_factory.mktemp("recurrent")
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4, "mamba_d_state": 16}
    convert(make_checkpoint("jamba", folder / "checkpoint", **sizes), folder / "m.gguf")
    (folder / "text.txt").write_text(TEXT * 3)
    return folder


def test_importance_and_quantization(folder: Path) -> None:
    model, quantized = str(folder / "m.gguf"), folder / "q.gguf"
    found = folder / "imatrix.gguf"
    assert (
        main(["imatrix", "-m", model, "-f", f"{folder}/text.txt", "-o", str(found), "-c", str(CONTEXT), "--json"]) == 0
    )
    importance = read_importance(found)
    for name in ("ssm_in", "ssm_x", "ssm_dt", "ssm_out"):
        assert importance.counts[f"blk.0.{name}.weight"] == importance.chunk_count * CONTEXT
        assert importance.sums[f"blk.0.{name}.weight"].min() > 0
    assert main(["quantize", "--imatrix", str(found), model, str(quantized), "Q4_K_M"]) == 0
    with open_gguf(quantized) as file:
        types = {tensor.name.removeprefix("blk.0."): tensor.type for tensor in file.tensors}
    for kept in ("ssm_conv1d.weight", "ssm_a", "ssm_d", "ssm_dt_norm.weight"):
        assert types[kept] == GGMLType.F32
    assert types["ssm_in.weight"] == types["ssm_out.weight"] == GGMLType.Q4_K
    ids = np.arange(200) * 7 % 300
    logits = []
    for path in (folder / "m.gguf", quantized):
        with load_model(path, context=256) as loaded:
            logits.append(loaded.forward([(loaded.new_sequence(), ids, "all")]).all().ravel())
    assert np.corrcoef(logits)[0, 1] > 0.7  # four bits of random weights


def test_damage_is_measured_where_it_is_done(folder: Path) -> None:
    with load_model(folder / "m.gguf", context=CONTEXT, precision="f32") as model:
        windows = pick_windows(model.tokenizer.encode(TEXT), 2, 32, None)
        names = ("blk.0.ssm_in.weight", "blk.2.ssm_out.weight")
        found: dict[str, float] = {}
        probe(model.program, windows, names, lambda name, x: x * 0, found.__setitem__, threads=1)
        assert all(found[name] > 1e-3 for name in names)
        probe(model.program, windows, names, lambda name, x: x.copy(), found.__setitem__, threads=1)
        assert all(found[name] == 0 for name in names)


def test_a_shallower_past_is_computed_again(folder: Path) -> None:
    """A state of fixed size cannot be cut at any length."""
    deep, shallow = Workload(2, 1, 130), Workload(2, 1, 70, 2)
    runner = Runner(resolve(Settings(folder / "m.gguf", threads=1)), [deep, shallow])
    runner.run(deep)
    assert [sequence.length for sequence in runner._fork(shallow)] == [70, 70]
    runner.close()
