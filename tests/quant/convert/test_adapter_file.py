"""GGUF adapters made of peft's: logits of the engine with them against peft's own."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from lltool.engine.model import load_model
from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.reader import open_gguf
from lltool.quant.convert.adapter_file import plan_adapter, write_adapter
from lltool.quant.convert.conversion import Wishes, convert
from lltool.quant.convert.families.changes import Chain, Inverse, Map, Permute, Split, Stack, Transpose
from lltool.quant.convert.families.sizes import Sizes
from lltool.quant.convert.lora import open_adapter
from lltool.quant.convert.low_rank import LowRank, change_factors
from lltool.tools.cli import main
from tests.tiny_checkpoints import make_checkpoint

ALL: dict[str, Any] = {"target_modules": "all-linear"}
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"rank {rank}": ("llama", {**ALL, "r": rank}) for rank in (1, 4, 16, 64)},
    "rank-stabilised": ("llama", {**ALL, "r": 5, "use_rslora": True}),
    "patterns": (
        "llama",
        {**ALL, "rank_pattern": {"v_proj": 3, "layers.1.mlp.down_proj": 2}, "alpha_pattern": {"q_proj": 7}},
    ),
    "embedding and output": ("llama", {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
    "fused and split": ("phi3", ALL),
    "scaled embedding": ("gemma3", {"target_modules": ["embed_tokens", "o_proj"]}),
    "inputs first": ("gpt2", {**ALL, "fan_in_fan_out": True}),
    "gathered heads": ("gptneox", ALL),
    "experts": ("qwen3moe", {"target_modules": ["q_proj"], "target_parameters": EXPERTS, "r": 3}),
    "experts with inputs first": ("gpt-oss", {"target_modules": ["v_proj"], "target_parameters": EXPERTS, "r": 2}),
}
IDS = np.arange(45) * 7 % 300 + 3
Make = Callable[..., tuple[Path, Any]]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def find(family: str) -> Path:
        if family not in made:
            made[family] = make_checkpoint(family, tmp_path_factory.mktemp("adapters") / family)
            convert(made[family], made[family].with_suffix(".gguf"), "f32")
        return made[family]

    return find


def make_adapter(base: Path, folder: Path, **settings: Any) -> Any:
    """Writes a random adapter, and returns peft's model with it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 16, **settings})).eval()
    torch.manual_seed(len(folder.name))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter) * 0.1)
    adapted.save_pretrained(folder)
    return adapted


def peft_logits(model: Any) -> np.ndarray:
    import torch

    with torch.no_grad():
        logits: np.ndarray = model(torch.tensor(IDS)[None]).logits[0].numpy()
    return logits


def our_logits(path: Path, lora: list[tuple[Path, float]], **settings: Any) -> np.ndarray:
    with load_model(path, lora=lora, precision="f32", **settings) as model:
        logits = model.forward([(model.new_sequence(), IDS, "all")])
        return np.concatenate([logits.block(i, min(i + 32, len(IDS))).copy() for i in range(0, len(IDS), 32)])


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_peft(case: str, checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    family, settings = CASES[case]
    base = checkpoints(family)
    wanted = peft_logits(make_adapter(base, tmp_path / "adapter", **settings))
    adapter = write_adapter(plan_adapter(open_adapter(str(tmp_path / "adapter")), str(base)), tmp_path / "a.gguf")
    for executor in ("cpu", "reference"):
        found = our_logits(base.with_suffix(".gguf"), [(adapter, 1.0)], executor=executor)
        assert np.abs(found - wanted).max() < 1e-4 * wanted.std()
    assert np.abs(our_logits(base.with_suffix(".gguf"), []) - wanted).max() > 0.1 * wanted.std()


def test_two_adapters_are_those_of_peft(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    base = checkpoints("llama")
    model = make_adapter(base, tmp_path / "one", **ALL)
    make_adapter(base, tmp_path / "another", target_modules=["q_proj", "up_proj"], r=2, use_rslora=True)
    model.load_adapter(str(tmp_path / "another"), "another")
    model.base_model.set_adapter(["default", "another"])
    wanted = peft_logits(model)
    paths = [
        write_adapter(plan_adapter(open_adapter(str(tmp_path / name)), str(base)), tmp_path / f"{name}.gguf")
        for name in ("one", "another")
    ]
    found = our_logits(base.with_suffix(".gguf"), [(path, 1.0) for path in paths])
    assert np.abs(found - wanted).max() < 1e-4 * wanted.std()


def test_unmerged_is_merged(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    base = checkpoints("llama")
    make_adapter(base, tmp_path / "adapter", **ALL, use_rslora=True)
    merged = convert(base, tmp_path / "m.gguf", "f32", Wishes(adapters=[open_adapter(f"{tmp_path / 'adapter'}:0.5")]))
    adapter = write_adapter(plan_adapter(open_adapter(str(tmp_path / "adapter")), str(base)), tmp_path / "a.gguf")
    wanted = our_logits(merged, [])
    found = our_logits(base.with_suffix(".gguf"), [(adapter, 0.5)])
    assert np.abs(found - wanted).max() < 2e-5 * wanted.std()


def test_stored_values_and_types_stay_where_the_scale_is_alpha_over_rank(
    checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    base = checkpoints("qwen2")
    make_adapter(base, tmp_path / "adapter", target_modules=["v_proj"], r=8, lora_alpha=24)
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    halves = {name: tensor.half() for name, tensor in load_file(weights).items()}
    save_file(halves, weights)
    plan = plan_adapter(open_adapter(str(tmp_path / "adapter")), str(base))
    for tensor in plan.model.tensors:
        layer, part = tensor.name.split(".")[1], tensor.name[-1].upper()
        stored = halves[f"base_model.model.model.layers.{layer}.self_attn.v_proj.lora_{part}.weight"].numpy()
        assert tensor.type == GGMLType.F16
        np.testing.assert_array_equal(np.ascontiguousarray(tensor.data()).view(np.float16), stored)


def test_the_command_and_what_inspect_shows(
    checkpoints: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = checkpoints("llama")
    make_adapter(base, tmp_path / "adapter", target_modules=["v_proj", "down_proj"], r=8)
    (tmp_path / "adapter" / "adapter_model.safetensors").rename(tmp_path / "weights.safetensors")
    import torch

    torch.save(load_file(tmp_path / "weights.safetensors"), tmp_path / "adapter" / "adapter_model.bin")
    out = str(tmp_path / "a.gguf")
    assert main(["convert", str(tmp_path / "adapter"), "-o", out, "--base", str(base), "--outtype", "f16"]) == 0
    assert capsys.readouterr().out.strip() == out
    with open_gguf(out) as file:
        assert {tensor.type for tensor in file.tensors} == {GGMLType.F16}
    assert main(["inspect", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["adapter"] == {"matrices": 6, "ranks": [8], "alpha": 16.0}
    assert main(["inspect", out]) == 0
    assert "adapter       LoRA of 6 matrices, rank 8, alpha 16.0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("llama", {"target_modules": ["q_proj"], "use_dora": True}, r"a magnitude of DoRA, which.* --lora ADAPTER"),
        ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, r"lm_head\.weight: a part that was"),
        ("llama", {"target_modules": ["q_proj"], "bias": "all"}, None),
        ("qwen2", {"target_modules": ["q_proj"], "bias": "lora_only"}, r"q_proj.*bias: a part that was trained whole"),
        ("qwen2", {"target_modules": ["lm_head", "q_proj"]}, r"lm_head: changes the output matrix, which the base sha"),
    ],
)
def test_what_a_file_cannot_hold_names_the_command_that_merges(
    family: str, settings: Mapping[str, Any], message: str | None, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    base = checkpoints(family)
    make_adapter(base, tmp_path / "adapter", **settings)
    adapter = open_adapter(str(tmp_path / "adapter"))
    if message is None:  # this base has no biases
        assert len(plan_adapter(adapter, str(base)).changed) == 3
        return
    with pytest.raises(InputError, match=message) as error:
        plan_adapter(adapter, str(base))
    assert "lltool convert MODEL --lora ADAPTER" in str(error.value)


def test_an_adapter_of_another_base_is_refused(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    make_adapter(checkpoints("llama"), tmp_path / "adapter", target_modules=["q_proj"])
    with pytest.raises(InputError, match=r"q_proj: changes \(64, 64\), and Qwen3ForCausalLM .* is this its base\?"):
        plan_adapter(open_adapter(str(tmp_path / "adapter")), str(checkpoints("qwen3")))
    with pytest.raises(InputError, match="no-such-folder"):
        plan_adapter(open_adapter(str(tmp_path / "adapter")), str(tmp_path / "no-such-folder"))


@pytest.mark.parametrize(
    ("change", "shapes"),
    [
        (Split(("4", "6")), [(10, 6)]),
        (Permute("2"), [(8, 6)]),
        (Chain(Split(("2", "3"), "2"), Inverse(Split(("4", "6")))), [(10, 6)]),
        (Inverse(Split(("4", "6"))), [(4, 5), (6, 5)]),
        (Transpose(), [(4, 6)]),
        (Stack("3"), [(4, 5)] * 3),
    ],
)
def test_factors_after_a_change_make_the_changed_product(change: Any, shapes: list[tuple[int, int]]) -> None:
    from lltool.quant.convert.low_rank import float_tensor

    random, sizes = np.random.default_rng(0), Sizes({})
    ranks = [2, 3, 1][: len(shapes)]
    factors = [
        LowRank(np.float32(random.normal(size=(rows, rank))), np.float32(random.normal(size=(rank, columns))), 2.0)
        for (rows, columns), rank in zip(shapes, ranks, strict=True)
    ]
    products = [float_tensor("", f.scale * f.up @ f.down) for f in factors]
    made = change_factors(change, factors, sizes)
    for found, wanted in zip(made, change.to_gguf(products, sizes), strict=True):
        assert found.shape == wanted.shape
        whole = np.ascontiguousarray(wanted.data()).view(np.float32).reshape(wanted.shape)
        np.testing.assert_allclose(found.scale * found.up @ found.down, whole, rtol=1e-5, atol=1e-6)


def test_a_change_of_values_is_refused() -> None:
    factors = [LowRank(np.ones((2, 1), np.float32), np.ones((1, 2), np.float32))]
    with pytest.raises(InputError, match="cannot pass through Map"):
        change_factors(Map(np.negative, np.negative), factors, Sizes({}))
