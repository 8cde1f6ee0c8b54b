"""LoRA adapters merged on the way, against peft's merge_and_unload."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lltool.gguf.errors import InputError
from lltool.gguf.reader import open_gguf
from lltool.quant.codec import decode
from lltool.quant.convert.conversion import Wishes, convert, plan_conversion
from lltool.quant.convert.lora import open_adapter
from lltool.tools.cli import main
from tests.tiny_checkpoints import make_checkpoint

LINEAR = ["q_proj", "v_proj", "o_proj", "down_proj"]
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": LINEAR},
    "rank-stabilised": {"target_modules": LINEAR, "use_rslora": True, "r": 5},
    "patterns": {
        "target_modules": LINEAR,
        "rank_pattern": {"v_proj": 3, "layers.1.mlp.down_proj": 2},
        "alpha_pattern": {"q_proj": 7, "layers.0.self_attn.o_proj": 40},
    },
    "DoRA": {"target_modules": LINEAR, "use_dora": True},
    "embedding and output": {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    "trained whole": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("llama", tmp_path_factory.mktemp("lora") / "tiny")


Make = Callable[..., Path]


@pytest.fixture
def adapter(checkpoint: Path, tmp_path: Path) -> Make:
    """Makes an adapter with random weights in `folder`, and the merged checkpoint beside it, in `folder`-merged."""
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    def make(name: str, base: Path = checkpoint, **settings: Any) -> Path:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        adapted = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 16, **settings}))
        torch.manual_seed(len(name))
        with torch.no_grad():
            for key, parameter in adapted.named_parameters():
                if parameter.requires_grad and "magnitude" not in key:
                    parameter.copy_(torch.randn_like(parameter) * 0.1)
                elif "magnitude" in key:
                    parameter.mul_(1 + 0.2 * torch.rand_like(parameter))
        adapted.save_pretrained(tmp_path / name)
        again = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), tmp_path / name
        )
        merged = tmp_path / f"{name}-merged"
        again.merge_and_unload().save_pretrained(merged)
        for file in base.iterdir():
            if file.name.startswith("token"):
                (merged / file.name).write_bytes(file.read_bytes())
        return tmp_path / name

    return make


def weights_of(path: Path) -> dict[str, np.ndarray]:
    with open_gguf(path) as file:
        return {t.name: decode(t.data(), t.type).reshape(t.shape) for t in file.tensors}


def assert_same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, weights in wanted.items():
        # sums of a few products, in another order
        np.testing.assert_allclose(found[name], weights, rtol=1e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_adapter_is_what_peft_makes(kind: str, checkpoint: Path, adapter: Make, tmp_path: Path) -> None:
    folder = adapter("adapter", **KINDS[kind])
    made = convert(checkpoint, tmp_path / "m.gguf", "f32", Wishes(adapters=[open_adapter(str(folder))]))
    wanted = weights_of(convert(tmp_path / "adapter-merged", tmp_path / "w.gguf", "f32"))
    assert_same(weights_of(made), wanted)
    base = weights_of(convert(checkpoint, tmp_path / "b.gguf", "f32"))
    changed = {name for name in base if not np.array_equal(base[name], wanted[name])}
    assert len(changed) >= 2


def test_several_adapters_with_scales(checkpoint: Path, adapter: Make, tmp_path: Path) -> None:
    one = adapter("one", target_modules=LINEAR)
    adapter("two", tmp_path / "one-merged", target_modules=["q_proj", "k_proj"], use_rslora=True)
    both = [open_adapter(str(tmp_path / name)) for name in ("one", "two")]
    made = convert(checkpoint, tmp_path / "m.gguf", "f32", Wishes(adapters=both))
    assert_same(weights_of(made), weights_of(convert(tmp_path / "two-merged", tmp_path / "w.gguf", "f32")))
    base, whole = (weights_of(convert(f, tmp_path / "x.gguf", "f32")) for f in (checkpoint, tmp_path / "one-merged"))
    half = convert(checkpoint, tmp_path / "h.gguf", "f32", Wishes(adapters=[open_adapter(f"{one}:0.5")]))
    assert_same(weights_of(half), {name: (base[name] + whole[name]) / 2 for name in base})


def test_auto_keeps_the_type_and_the_file_says_what_was_merged(
    checkpoint: Path, adapter: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = adapter("adapter", target_modules=LINEAR)
    narrow = make_checkpoint("llama", tmp_path / "narrow", dtype="bfloat16")
    arguments = ["convert", str(narrow), "-o", str(tmp_path / "m.gguf"), "--lora", f"{folder}:2"]
    assert main(arguments) == 0
    assert "tensors are merged with the adapter adapter times 2" in capsys.readouterr().err
    assert main([*arguments, "--verify"]) == 2
    assert "--verify compares with the checkpoint, from which --lora departs" in capsys.readouterr().err
    with open_gguf(tmp_path / "m.gguf") as file:
        assert file.tensor("blk.0.attn_q.weight").type.name == "BF16"
        [origin] = file.metadata["lltool.convert.adapters"].data
        assert origin.startswith("adapter:2:")


def test_bad_adapters_are_one_line(checkpoint: Path, adapter: Make, tmp_path: Path) -> None:
    folder = adapter("adapter", target_modules=LINEAR)
    other = make_checkpoint("llama", tmp_path / "other", hidden_size=32, head_dim=16)
    with pytest.raises(InputError, match=r"proj: changes a matrix of \(.*, but the checkpoint's is .*; is this its"):
        plan_conversion(other, "f32", Wishes(adapters=[open_adapter(str(folder))]))
    config = json.loads((folder / "adapter_config.json").read_text())
    for change, message in [
        ({"peft_type": "LOHA"}, "peft_type: found 'LOHA', wanted 'LORA'"),
        ({"target_parameters": ["a"]}, "target_parameters is set; such an adapter is merged by peft only"),
    ]:
        (folder / "adapter_config.json").write_text(json.dumps(config | change))
        with pytest.raises(InputError, match=message):
            plan_conversion(checkpoint, "f32", Wishes(adapters=[open_adapter(str(folder))]))
    with pytest.raises(InputError, match="no such file or folder; wanted an adapter's folder"):
        open_adapter(str(tmp_path / "none:2"))
    with pytest.raises(InputError, match=r"adapter_config\.json: missing"):
        open_adapter(str(checkpoint))
