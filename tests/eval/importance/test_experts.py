"""A tiny mixture of experts through the commands: importance by expert, quantization, profile and sensitivities."""

import json
from pathlib import Path

import numpy as np
import pytest

from lltool.engine.model import load_model
from lltool.eval.importance.inputs import LinearInputs
from lltool.eval.search.sensitivity import pick_windows, probe
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.reader import open_gguf
from lltool.quant.codec import decode, encode
from lltool.quant.convert.conversion import convert
from lltool.quant.importance import read_importance
from lltool.tools.cli import main
from tests.tiny_checkpoints import make_checkpoint
from tests.tiny_tokenizers import TEXT

EXPERTS, USED, WIDTH, HIDDEN, CONTEXT = 8, 2, 256, 256, 64
STACKS = tuple(f"blk.{layer}.ffn_{part}_exps.weight" for layer in range(3) for part in ("gate", "up", "down"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 model `m.gguf`, a text, and importance of it."""
    folder = tmp_path_factory.mktemp("mixture")
    sizes = {"hidden_size": WIDTH, "moe_intermediate_size": HIDDEN, "num_experts": EXPERTS, "num_experts_per_tok": USED}
    convert(make_checkpoint("qwen3moe", folder / "checkpoint", **sizes), folder / "m.gguf")
    (folder / "text.txt").write_text(TEXT * 3)
    assert collect(folder, "all.gguf") == 0
    return folder


def collect(folder: Path, name: str, *options: str) -> int:
    command = ["imatrix", "-m", f"{folder}/m.gguf", "-f", f"{folder}/text.txt", "-o", f"{folder}/{name}"]
    return main([*command, "-c", str(CONTEXT), "--json", *options])


def test_each_expert_has_sums_and_a_count(folder: Path) -> None:
    """In the shapes of llama-imatrix; all sums of a matrix together are those of its inputs for the tokens' experts."""
    importance = read_importance(folder / "all.gguf")
    tokens = importance.counts["blk.0.attn_q.weight"][0]
    assert tokens == importance.chunk_count * CONTEXT
    for name in STACKS:
        columns = HIDDEN if "down" in name else WIDTH
        assert importance.sums[name].shape == (EXPERTS, columns)
        assert importance.counts[name].sum() == tokens * USED
        assert importance.counts[name].min() < importance.counts[name].max()
    with open_gguf(folder / "all.gguf") as file:
        assert file.tensor(f"{STACKS[0]}.in_sum2").shape == (EXPERTS, WIDTH)
        assert file.tensor(f"{STACKS[0]}.counts").shape == (EXPERTS, 1)


def test_it_ends_when_each_expert_was_seen(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert collect(folder, "seen.gguf", "--until-seen", "20", "-ofreq", "1") == 0
    output = capsys.readouterr()
    found = json.loads(output.out)
    assert 0 < found["chunks"] < found["chunks_wanted"]
    _, expert, seen, mean = found["coverage"]["rarest"]
    assert mean == found["chunks"] * CONTEXT * USED / EXPERTS
    assert f"each expert has seen {seen} tokens after {found['chunks']} of {found['chunks_wanted']}" in output.err
    assert f"rarest expert: number {expert} of blk." in output.err
    counts = read_importance(folder / "seen.gguf").counts
    assert min(counts[name].min() for name in STACKS) == seen >= 20


def test_a_model_without_experts_cannot_show_any(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert(make_checkpoint("qwen3", tmp_path / "dense"), tmp_path / "m.gguf")
    (tmp_path / "text.txt").write_text(TEXT)
    command = ["imatrix", "-m", f"{tmp_path}/m.gguf", "-f", f"{tmp_path}/text.txt", "-c", "32", "--until-seen", "2"]
    assert main([*command, "-o", f"{tmp_path}/i.gguf"]) == 2
    assert "m.gguf: has no experts, so that none can be seen" in capsys.readouterr().err
    assert not (tmp_path / "i.gguf").exists()


def test_an_expert_is_encoded_with_its_own_importance(folder: Path) -> None:
    quantized = folder / "q.gguf"
    assert main(["quantize", "--imatrix", f"{folder}/all.gguf", f"{folder}/m.gguf", str(quantized), "Q4_K_M"]) == 0
    importance = read_importance(folder / "all.gguf")
    with open_gguf(quantized) as file, open_gguf(folder / "m.gguf") as original:
        assert file.tensor("blk.0.ffn_gate_inp.weight").type == GGMLType.F32
        for name in STACKS[:3]:
            tensor, plain = file.tensor(name), original.tensor(name)
            assert tensor.shape == plain.shape
            rows = tensor.rows // EXPERTS
            for expert in (0, 5):
                weights = decode(plain.read(expert * rows, (expert + 1) * rows), GGMLType.F32)
                expected = encode(weights, tensor.type, importance.means(name)[expert])
                np.testing.assert_array_equal(tensor.read(expert * rows, (expert + 1) * rows), expected)


@pytest.mark.slow
def test_the_profile_has_the_experts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", "-m", f"{folder}/m.gguf", "-p", "32", "-n", "0", "-r", "1", "--profile", "--no-history"]
    assert main([*command, "-o", "json"]) == 0
    rows = {row["operation"]: row for row in json.loads(capsys.readouterr().out)}
    first = rows["experts ffn_gate_exps ffn_up_exps, silu"]
    assert first["multiply_adds_per_token"] == 3 * 2 * USED * WIDTH * HIDDEN
    assert rows["experts ffn_down_exps"]["count"] == 3
    # Of 32 tokens with two of eight experts, all but one in ten thousand see each expert.
    assert first["read_bytes_per_token"] == pytest.approx(3 * 2 * EXPERTS * WIDTH * HIDDEN * 4 / 32, rel=1e-3)


def test_damage_of_experts_is_measured(folder: Path) -> None:
    """An expert without a token changes nothing; zeros in a whole stack change much."""
    with load_model(folder / "m.gguf", context=CONTEXT, precision="f32") as model:
        ids = model.tokenizer.encode(TEXT)
        windows = pick_windows(ids, 2, 32, None)
        names = ("blk.0.ffn_up_exps.weight", "blk.2.ffn_down_exps.weight")
        found: dict[str, float] = {}
        probe(model.program, windows, names, lambda name, x: x * 0, found.__setitem__, threads=1)
        assert all(found[name] > 1e-3 for name in names)
        probe(model.program, windows, names, lambda name, x: x.copy(), found.__setitem__, threads=1)
        assert all(found[name] == 0 for name in names)


def test_inputs_for_compensation_leave_experts_out(folder: Path) -> None:
    with load_model(folder / "m.gguf", context=CONTEXT, precision="f32") as model:
        inputs = LinearInputs(model.program, np.arange(64, dtype=np.int32).reshape(2, 32), threads=1)
        assert not any(inputs.has(name) for name in STACKS)
        assert inputs.has("blk.2.attn_q.weight")
        inputs.correlation("blk.2.attn_q.weight")  # the parts before it, with experts, run
