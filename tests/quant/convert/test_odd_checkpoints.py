"""Unusual checkpoints: one model under other names, types, files and configs, and explanations of errors."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lltool.engine.models.architectures import check_runnable
from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from lltool.quant.convert.checkpoint import read_json
from lltool.quant.convert.conversion import Conversion, convert, plan_conversion
from lltool.quant.convert.families.names import plain_name
from lltool.quant.retype import Decoder
from lltool.tools.cli import main
from tests.tiny_checkpoints import FAMILIES, make_checkpoint

Tensors = dict[str, Any]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = make_checkpoint(family, tmp_path_factory.mktemp("odd") / family)
        return made[family]

    return make


def rewrite(
    original: Path,
    folder: Path,
    change: Callable[[Tensors], Tensors] = lambda tensors: tensors,
    *,
    drop: tuple[str, ...] = (),
    metadata: dict[str, str] | None = None,
    **config: Any,
) -> Path:
    """A copy with other tensors and config values, without the keys in `drop`."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(original, folder)
    values = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps({key: v for key, v in values.items() if key not in drop}))
    tensors = {name: values.clone() for name, values in change(load_file(folder / "model.safetensors")).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt", **(metadata or {})})
    return folder


def weights(conversion: Conversion) -> dict[str, Any]:
    decoder = Decoder(1)
    return {t.name: decoder.weights(t, 0, t.rows).copy() for t in conversion.model.tensors}


def assert_same_model(folder: Path, original: Path) -> Conversion:
    """Asserts that the tensors are the same, and the keys except the name."""
    found, wanted = plan_conversion(folder), plan_conversion(original)
    ours, theirs = weights(found), weights(wanted)
    assert list(ours) == list(theirs)
    for name, values in theirs.items():
        np.testing.assert_array_equal(ours[name], values, name)
    skipped = ("general.name", "general.file_type")
    for key in wanted.model.metadata.keys() - skipped:
        assert repr(found.model.metadata[key]) == repr(wanted.model.metadata[key])
    return found


def prefixed(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {prefix + name: values for name, values in tensors.items()}


def unprefixed(tensors: Tensors) -> Tensors:
    return {name.removeprefix("model."): values for name, values in tensors.items()}


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize(
    "change",
    [unprefixed, *map(prefixed, ("module.", "_orig_mod.", "base_model.model.", "module._orig_mod.", "model."))],
    ids=["without model.", "module.", "_orig_mod.", "base_model.model.", "module._orig_mod.", "model."],
)
def test_names_under_wrappers(
    family: str, change: Callable[[Tensors], Tensors], originals: Callable[[str], Path], tmp_path: Path
) -> None:
    assert_same_model(rewrite(originals(family), tmp_path / "m", change), originals(family))


def test_plain_name() -> None:
    for name, plain in (
        ("layers.3.mlp.up_proj.weight", "model.layers.3.mlp.up_proj.weight"),
        ("module.model._orig_mod.layers.0._fsdp_wrapped_module.mlp.x", "model.layers.0.mlp.x"),
        ("model.lm_head.weight", "lm_head.weight"),
        ("model.vision.weight", "model.vision.weight"),
    ):
        assert plain_name(name, {}) == plain


def test_the_engine_checks_before_writing(
    originals: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    check_runnable(plan_conversion(originals("llama")).model)
    target = tmp_path / "m.gguf"
    monkeypatch.setattr("lltool.engine.config.MAX_TENSORS", 2)
    assert main(["convert", str(originals("llama")), "-o", str(target)]) == 2
    assert "the model would not run: llama.block_count: found 3, wanted at most 2" in capsys.readouterr().err
    assert not target.exists()


def test_tied_matrices_under_either_name(originals: Callable[[str], Path], tmp_path: Path) -> None:
    original = originals("llama3-rope")

    def rename(tensors: Tensors) -> Tensors:
        return tensors | {"lm_head.weight": tensors.pop("model.embed_tokens.weight")}

    def repeat(tensors: Tensors) -> Tensors:
        return tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}

    def differ(tensors: Tensors) -> Tensors:
        return tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}

    assert_same_model(rewrite(original, tmp_path / "renamed", rename), original)
    assert_same_model(rewrite(original, tmp_path / "repeated", repeat), original)
    # transformers keeps both if they differ, regardless of the config.
    conversion = plan_conversion(rewrite(original, tmp_path / "different", differ))
    found = weights(conversion)
    np.testing.assert_array_equal(found["output.weight"], found["token_embd.weight"] + 1)
    assert conversion.notes == [
        "config.json says tie_word_embeddings, but the output matrix (lm_head) differs from the embedding; "
        "both are kept"
    ]


def test_alias_in_safetensors(originals: Callable[[str], Path], tmp_path: Path) -> None:
    """`save_model` of safetensors stores a shared tensor once and lists its other names in the header."""
    original = originals("llama3-rope")
    alias = {"model.embed_tokens.weight": "lm_head.weight"}

    def rename(tensors: Tensors) -> Tensors:
        return tensors | {"lm_head.weight": tensors.pop("model.embed_tokens.weight")}

    assert_same_model(rewrite(original, tmp_path / "tied", rename, metadata=alias), original)
    untied = rewrite(original, tmp_path / "untied", rename, metadata=alias, tie_word_embeddings=False)
    found = weights(plan_conversion(untied))
    np.testing.assert_array_equal(found["output.weight"], found["token_embd.weight"])


@pytest.mark.parametrize("wrapper", ["state_dict", "model", None])
def test_bin_of_a_training_program(wrapper: str | None, originals: Callable[[str], Path], tmp_path: Path) -> None:
    """Tied matrices share one storage in such a file and have two names."""
    import torch
    from safetensors.torch import load_file

    folder = rewrite(originals("llama3-rope"), tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    (folder / "model.safetensors").unlink()
    torch.save({wrapper: tensors, "epoch": 3} if wrapper else tensors, folder / "pytorch_model.bin")
    assert_same_model(folder, originals("llama3-rope"))


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_float64_and_mixtures(form: str, originals: Callable[[str], Path], tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    def mix(tensors: Tensors) -> Tensors:
        kinds = {"norm": torch.float64, "q_proj": torch.float16, "k_proj": torch.bfloat16, "up_proj": torch.float64}
        for name in tensors:
            kind = next((kind for part, kind in kinds.items() if part in name), torch.float32)
            tensors[name] = tensors[name].to(kind)
        return tensors

    folder = rewrite(originals("llama"), tmp_path / "m", mix)
    if form == "bin":
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    conversion = plan_conversion(folder)
    types = {t.name.split(".")[2]: t.type for t in conversion.model.tensors if t.name.startswith("blk.0")}
    assert (types["attn_norm"], types["ffn_up"]) == (GGMLType.F32, GGMLType.F32)
    assert (types["attn_q"], types["attn_k"]) == (GGMLType.F16, GGMLType.BF16)
    assert conversion.file_type.name == "F32"
    assert conversion.notes == ["10 tensors are stored in float64; they are rounded to float32"]
    original = load_file(originals("llama") / "model.safetensors")
    found = weights(conversion)["blk.1.ffn_up.weight"]
    np.testing.assert_array_equal(found, original["model.layers.1.mlp.up_proj.weight"].numpy())


def test_norms_in_float64_of_gemma(originals: Callable[[str], Path], tmp_path: Path) -> None:
    folder = rewrite(originals("gemma3"), tmp_path / "m", lambda t: {name: v.double() for name, v in t.items()})
    assert_same_model(folder, originals("gemma3"))


def test_types_that_are_not_cast(originals: Callable[[str], Path], tmp_path: Path) -> None:
    import torch

    name = "model.layers.1.mlp.up_proj.weight"
    for number, kind in enumerate((torch.int8, torch.float8_e4m3fn, torch.int64)):
        folder = rewrite(originals("llama"), tmp_path / str(number), lambda t, kind=kind: t | {name: t[name].to(kind)})
        with pytest.raises(InputError, match=rf"model\.safetensors: {name}: type \w+ is not supported; wanted F32"):
            plan_conversion(folder)

    def enlarge(tensors: Tensors) -> Tensors:
        tensors[name] = tensors[name].double()
        tensors[name][2, 1] = 1e300
        return tensors

    folder = rewrite(originals("llama"), tmp_path / "large", enlarge)
    with pytest.raises(InputError, match=r"blk\.1\.ffn_up\.weight: row 2 holds NaN or infinity"):
        convert(folder, tmp_path / "m.gguf")


@pytest.mark.parametrize("family", FAMILIES)
def test_model_type_without_architectures(family: str, originals: Callable[[str], Path], tmp_path: Path) -> None:
    assert_same_model(rewrite(originals(family), tmp_path / "m", drop=("architectures",)), originals(family))


def test_model_type_decides(originals: Callable[[str], Path], tmp_path: Path) -> None:
    folder = rewrite(originals("llama"), tmp_path / "m", architectures=["MistralForCausalLM"], sliding_window=16)
    conversion = plan_conversion(folder)
    assert "llama.attention.sliding_window" not in conversion.model.metadata
    assert conversion.notes == [
        "config.json says model_type llama and architectures MistralForCausalLM; model_type decides",
        "config.json has sliding_window (16), which Llama does not use; ignored",
    ]


@pytest.mark.parametrize("theta", [3580165449, 3580165449.0, 1e11])
def test_large_rope_theta(theta: float, originals: Callable[[str], Path], tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": theta}
    metadata = plan_conversion(rewrite(originals("llama"), tmp_path / "m", rope_parameters=rope)).model.metadata
    assert metadata["llama.rope.freq_base"].data == theta


def test_the_older_rope_scaling_wins(originals: Callable[[str], Path], tmp_path: Path) -> None:
    """As in transformers; the base is then not read from rope_parameters."""
    folder = rewrite(
        originals("llama"),
        tmp_path / "m",
        rope_scaling={"type": "linear", "factor": 3},
        rope_parameters={"rope_type": "default", "rope_theta": 77.0},
    )
    metadata = plan_conversion(folder).model.metadata
    assert metadata["llama.rope.scaling.factor"].data == 3
    assert metadata["llama.rope.freq_base"].data == 10000.0


def test_yarn_without_truncation(originals: Callable[[str], Path], tmp_path: Path) -> None:
    """The frequencies equal transformers' and are stored as divisors; the keys of GGUF imply truncation."""
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    original = originals("llama-yarn")
    rope = json.loads((original / "config.json").read_text())["rope_parameters"]
    assert_same_model(rewrite(original, tmp_path / "true", rope_parameters={**rope, "truncate": True}), original)
    folder = rewrite(original, tmp_path / "false", rope_parameters={**rope, "truncate": False})
    conversion = plan_conversion(folder)
    wanted, magnitude = ROPE_INIT_FUNCTIONS["yarn"](AutoConfig.from_pretrained(folder), None)
    plain = 10000.0 ** (-np.arange(0, 16, 2) / 16)
    np.testing.assert_allclose(plain / weights(conversion)["rope_freqs.weight"][0], wanted, rtol=1e-6)
    assert conversion.model.metadata["llama.rope.scaling.attn_factor"].data == pytest.approx(magnitude)
    assert magnitude == pytest.approx(1 + 0.1 * math.log(4))
    assert "llama.rope.scaling.type" not in conversion.model.metadata
    assert "yarn with truncate false is stored as a tensor" in conversion.notes[0]


def test_layer_types_of_mistral(originals: Callable[[str], Path], tmp_path: Path) -> None:
    kinds = ["full_attention", "sliding_attention", "sliding_attention"]
    metadata = plan_conversion(rewrite(originals("mistral"), tmp_path / "m", layer_types=kinds)).model.metadata
    assert metadata["llama.attention.sliding_window_pattern"].data.tolist() == [False, True, True]


def test_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a": 1}', encoding="utf-8-sig")
    assert read_json(tmp_path / "x.json") == {"a": 1}


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("llama", {"vocab_size": 320}, r"shape \(384, 64\), wanted \(320, 64\), which is vocab_size × hidden_size"),
        ("llama", {"intermediate_size": 96}, r"gate_proj.weight: shape \(128, 64\), wanted \(96, 64\)"),
        (
            "llama",
            {"num_attention_heads": 2, "head_dim": 16},
            r"wanted \(32, 64\), which is num_attention_heads \* hea",
        ),
        ("qwen3", {"head_dim": 64}, r"q_proj.weight: shape \(128, 64\), wanted \(256, 64\)"),
        ("llama", {"head_dim": 17}, "head_dim: found 17, wanted an even number"),
        ("llama", {"head_dim": 1 << 24}, "head_dim: found 16777216, wanted at most 65536"),
        ("llama", {"attention_bias": True}, r"q_proj\.bias: missing from the checkpoint"),
        (
            "llama",
            {"num_hidden_layers": 2**31 - 1},
            "are of 3 layers, but config.json says num_hidden_layers 2147483647",
        ),
        ("llama", {"rms_norm_eps": 10**400}, "rms_norm_eps: found 10+"),
        ("llama", {"rms_norm_eps": 1e39}, r"rms_norm_eps: found 1e\+39, wanted a positive number"),
        ("llama", {"rope_theta": 1.0, "rope_parameters": None}, "rope_theta: found 1.0, wanted a number above 1"),
        ("llama", {"rope_theta": None, "rope_parameters": None}, "rope rope_theta: found None, wanted a"),
        ("llama", {"rope_scaling": "linear"}, "rope_scaling: found 'linear', wanted an object"),
        ("llama", {"rope_parameters": {"full_attention": {}}}, "rope_parameters: found .*, wanted one object for all"),
        ("gemma3", {"rope_parameters": {"rope_type": "default"}}, "wanted one object for each of full_attention and"),
        (
            "llama-yarn",
            {"rope_parameters": {"rope_type": "yarn", "factor": 4, "rope_theta": 1.1}},
            "settings stretch no",
        ),
        ("llama-yarn", {"rope_parameters": {"rope_type": "yarn", "factor": 4, "beta_slow": 64}}, "beta_fast is below"),
        ("llama", {"tie_word_embeddings": "yes"}, "tie_word_embeddings: found 'yes', wanted True or False"),
        ("gemma3", {"final_logit_softcapping": 0}, "final_logit_softcapping: found 0, wanted a number"),
        (
            "llama",
            {"architectures": None, "model_type": {"a": 1}},
            r"model_type \{'a': 1\} without architectures is not",
        ),
    ],
)
def test_models_that_cannot_run_are_refused_before_writing(
    family: str, change: dict[str, Any], message: str, originals: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        plan_conversion(rewrite(originals(family), tmp_path / "m", **change))


LAYER = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t | {f"base_model.model.{LAYER}.lora_A.weight": t["model.norm.weight"]},
            "an adapter that is not merged",
        ),
        (
            prefixed("transformer.h."),
            r"its tensors are named 'transformer\.h\.lm_head\.weight'.*do the names have an unknown prefix",
        ),
        (
            lambda t: t | {f"module.{LAYER}.weight": t[f"{LAYER}.weight"].clone()},
            "both stand for model.layers.0.mlp.up",
        ),
        (lambda t: t | {f"{LAYER}.bias": t["model.norm.weight"]}, "exists, but mlp_bias in config.json is not true"),
        (lambda t: t | {"score.weight": t["model.norm.weight"]}, "1 tensors have no place in llama: 'score.weight'"),
        (lambda t: {n: v for n, v in t.items() if n != "lm_head.weight"}, "config.json says tie_word_embeddings false"),
        (
            lambda t: t | {"model.norm.weight": t["model.norm.weight"].reshape(1, 64)},
            r"shape \(1, 64\), wanted \(64,\)",
        ),
    ],
)
def test_tensors_that_do_not_fit(
    change: Callable[[Tensors], Tensors], message: str, originals: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message) as raised:
        plan_conversion(rewrite(originals("llama"), tmp_path / "m", change))
    assert str(raised.value).startswith(str(tmp_path / "m"))


def test_adapter_beside_the_weights_is_noted(originals: Callable[[str], Path], tmp_path: Path) -> None:
    folder = rewrite(originals("llama"), tmp_path / "m")
    (folder / "adapter_config.json").write_text("{}")
    assert plan_conversion(folder).notes[0].startswith("the adapter beside the weights (adapter_config.json) is left")


def test_deep_nesting(originals: Callable[[str], Path], tmp_path: Path) -> None:
    folder = rewrite(originals("llama"), tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    for depth in (900, 100_000):
        text = json.dumps(config | {"rope_scaling": "X"}).replace('"X"', "[" * depth + "]" * depth)
        (folder / "config.json").write_text(text)
        with pytest.raises(InputError, match=r"rope_scaling: found|cannot be read as JSON"):
            plan_conversion(folder)
