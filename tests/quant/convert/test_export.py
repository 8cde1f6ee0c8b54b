"""Exported folders load in transformers and give the same logits, ids and weights."""

import errno
import hashlib
import json
import os
import unicodedata
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from lltool.engine.model import load_model
from lltool.engine.text.tokenizer import Tokenizer
from lltool.gguf.errors import InputError
from lltool.gguf.metadata import Value, ValueType, array, f32, string, u32
from lltool.gguf.reader import open_gguf
from lltool.gguf.source import Model
from lltool.gguf.writer import write_gguf
from lltool.quant.codec import decode
from lltool.quant.convert.conversion import convert
from lltool.quant.convert.export import export
from lltool.quant.convert.pretokenizer_match import PROBES
from lltool.tools.cli import main
from tests.conftest import GoldenFile
from tests.derived_checkpoints import make_derived
from tests.tiny_checkpoints import DEEPSEEK_YARN, FAMILIES, LINEAR, LONGROPE, YARN, adds_one, make_checkpoint, rope
from tests.tiny_tokenizers import CHAT, TEXT

TOKENS = 100
EXPORTED_AS = {
    "solar-open": "Glm4MoeForCausalLM",
    "helium": "LlamaForCausalLM",
    "cwm": "MinistralForCausalLM",
    "granite4": "GraniteForCausalLM",
    "glm4-moe-lite": "DeepseekV3ForCausalLM",
}  # another class that computes the same
INTEGERS = array(ValueType.INT32, np.array([1, 2], np.int32))


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "granite4"])  # which has other names
def test_round_trip_is_the_same_model(family: str, tmp_path: Path) -> None:
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    original = make_checkpoint(family, tmp_path / "original")
    gguf = convert(original, tmp_path / "m.gguf")
    folder = export(gguf, tmp_path / "back")
    ours, theirs = (AutoModelForCausalLM.from_pretrained(f, dtype="auto").eval() for f in (folder, original))
    assert type(ours) is (getattr(transformers, EXPORTED_AS[family]) if family in EXPORTED_AS else type(theirs))
    state = ours.state_dict()
    for name, values in theirs.state_dict().items():
        if adds_one(family) and name.endswith("norm.weight"):
            # 1 + weight, of values up to 2, was rounded once to float32.
            torch.testing.assert_close(state[name], values, rtol=0, atol=2**-23)
        elif name.endswith("A_log"):  # the logarithm of its rounded exponential
            torch.testing.assert_close(state[name], values, rtol=0, atol=2**-21)
        elif family == "helium" and name.endswith(("q_proj.weight", "k_proj.weight")):
            continue  # rotated pairs are neighbours there
        else:
            assert torch.equal(state[name], values), name
    ids = torch.randint(0, 370, (1, TOKENS), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        spread = theirs(ids).logits.max() - theirs(ids).logits.min()
        bound = (
            1e-5 if family in (*LINEAR, "kimi-linear") else 1e-6
        )  # states sum up what the rounding of norms and decays changed
        torch.testing.assert_close(ours(ids).logits / spread, theirs(ids).logits / spread, rtol=0, atol=bound)
    loaded = AutoTokenizer.from_pretrained(folder)
    with open_gguf(gguf) as file:
        tokenizer = Tokenizer.from_gguf(file.metadata)
    for text in (*PROBES, TEXT, "", " ", "<|im_start|>the<think>end<|im_end|>"):
        text = unicodedata.normalize("NFC", text)  # transformers does it for Qwen, engines of GGUF files do not
        assert loaded(text)["input_ids"] == tokenizer.encode(text, parse_special=True), text
    if "mistral" not in family and "linear" not in family:
        assert loaded.chat_template == CHAT
    assert loaded.eos_token_id == ours.config.eos_token_id == ours.generation_config.eos_token_id


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 32}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 1}),
        ("qwen3", {"attention_bias": True}),
        ("qwen2-yarn", {"rope_parameters": YARN["rope_parameters"] | {"attention_factor": 0.7, "beta_fast": 16.0}}),
        (
            "deepseek2",
            {
                "q_lora_rank": 24,
                "topk_method": "group_limited_greedy",
                "n_group": 4,
                "topk_group": 2,
                "rope_parameters": DEEPSEEK_YARN["rope_parameters"] | {"mscale": 0.9, "mscale_all_dim": 1.4},
            },
        ),
        ("deepseek3", {"q_lora_rank": None, "first_k_dense_replace": 2, **YARN}),
        (
            "ministral3",
            rope(
                "yarn",
                factor=4.0,
                original_max_position_embeddings=32,
                mscale=0.8,
                mscale_all_dim=1.2,
                llama_4_scaling_beta=0.1,
            ),
        ),
        (
            "phimoe",
            {
                "attention_bias": False,
                "rope_parameters": LONGROPE["rope_parameters"]
                | {"partial_rotary_factor": 1.0, "short_mscale": 1.3, "long_mscale": 1.3}
                | {"original_max_position_embeddings": 512, "short_factor": [1.1] * 8, "long_factor": [2.0] * 8},
            },
        ),
        ("llama4", {"interleave_moe_layer_step": 1, "tie_word_embeddings": True}),
        (
            "gemma3",
            {"query_pre_attn_scalar": 20, "final_logit_softcapping": 10.0, "layer_types": ["full_attention"] * 7},
        ),
    ],
)
def test_round_trip_of_variants(family: str, overrides: dict[str, object], tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    original = make_checkpoint(family, tmp_path / "original", **overrides)
    folder = export(convert(original, tmp_path / "m.gguf"), tmp_path / "back")
    ours, theirs = (AutoModelForCausalLM.from_pretrained(f, dtype="auto").eval() for f in (folder, original))
    ids = torch.randint(0, 370, (1, TOKENS), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        spread = theirs(ids).logits.max() - theirs(ids).logits.min()
        torch.testing.assert_close(ours(ids).logits / spread, theirs(ids).logits / spread, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ["internlm2", "internlm3", "baichuan", "baichuan2", "minicpm", "exaone"])
def test_models_that_transformers_lacks_become_one_that_it_has(family: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    original = make_derived(family, tmp_path / family)
    folder = export(convert(tmp_path / family, tmp_path / "m.gguf"), tmp_path / "back")
    ours, theirs = (AutoModelForCausalLM.from_pretrained(f, dtype="auto").eval() for f in (folder, original))
    assert type(ours) is type(theirs)
    ids = torch.randint(0, 370, (1, TOKENS), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        spread = theirs(ids).logits.max() - theirs(ids).logits.min()
        torch.testing.assert_close(ours(ids).logits / spread, theirs(ids).logits / spread, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ["qwen", "chatglm"])
def test_models_without_a_way_back(family: str, tmp_path: Path) -> None:
    make_derived(family, tmp_path / family)
    gguf = convert(tmp_path / family, tmp_path / "m.gguf")
    with pytest.raises(InputError, match="cannot be exported: its class is not part of transformers"):
        export(gguf, tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_bfloat16_comes_back_bit_for_bit(family: str, tmp_path: Path) -> None:
    """Norms are widened by the conversion and narrowed again by the export."""
    original = make_checkpoint(family, tmp_path / "original", dtype="bfloat16")
    folder = export(convert(original, tmp_path / "m.gguf"), tmp_path / "back")
    import torch
    from safetensors.torch import load_file

    theirs, ours = (load_file(f / "model.safetensors") for f in (original, folder))
    assert ours.keys() == theirs.keys()
    exact = [name for name in theirs if family != "gemma3" or "norm" not in name]
    for name in exact:
        assert ours[name].dtype == torch.bfloat16
        assert torch.equal(ours[name], theirs[name]), name
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_shards_and_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoModelForCausalLM

    gguf = convert(make_checkpoint("qwen3", tmp_path / "original"), tmp_path / "m.gguf")
    folder = export(gguf, tmp_path / "shards", shard_bytes=200_000)
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2
    assert main(["export", str(gguf), "-o", str(tmp_path / "one")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'one'}\n"
    assert main(["export", str(gguf), "-o", str(tmp_path / "half"), "--dtype", "bf16", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["path"], report["dtype"]) == (str(tmp_path / "half"), "bfloat16")
    embedding = next(tensor for tensor in report["tensors"] if tensor["name"] == "model.embed_tokens.weight")
    assert embedding == {"name": "model.embed_tokens.weight", "shape": [384, 64], "type": "BF16"}
    ours, theirs = (AutoModelForCausalLM.from_pretrained(f).state_dict() for f in (folder, tmp_path / "one"))
    assert all(ours[name].equal(theirs[name]) for name in theirs)


def test_folder_appears_complete_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gguf = convert(make_checkpoint("llama", tmp_path / "original"), tmp_path / "m.gguf")
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").write_text("mine")
    with pytest.raises(InputError, match="exists and is not an empty folder"):
        export(gguf, taken)
    with pytest.raises(InputError, match="no such folder"):
        export(gguf, tmp_path / "none" / "out")

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(gguf, tmp_path / "out", progress=interrupt)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.gguf", "original", "taken"]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("general.architecture", string("rwkv6"), "general.architecture: found 'rwkv6'; this version exports"),
        ("general.architecture", array(ValueType.STRING, ["a"]), "general.architecture: found "),
        ("llama.block_count", string("3"), "llama.block_count: found '3', wanted a positive integer"),
        ("llama.block_count", u32(0), "llama.block_count: found 0, wanted a positive integer"),
        ("llama.block_count", u32(10**9), "llama.block_count: found 1000000000, wanted no more than the 30 tensors"),
        ("llama.context_length", INTEGERS, r"llama.context_length: found \[1, 2\], wanted a positive integer"),
        ("llama.attention.head_count", u32(65), "llama.attention.head_count: found 65, wanted no more than"),
        ("llama.attention.layer_norm_rms_epsilon", f32(np.nan), "rms_epsilon: found nan, wanted a positive number"),
        ("llama.rope.freq_base", f32(0), "llama.rope.freq_base: found 0.0, wanted a positive number"),
        ("llama.rope.freq_base", string("x"), "llama.rope.freq_base: found 'x', wanted a positive number"),
        ("llama.rope.scaling.factor", f32(np.nan), "llama.rope.scaling.factor: found nan, wanted a positive number"),
        ("llama.rope.scaling.factor", INTEGERS, r"llama.rope.scaling.factor: found \[1, 2\], wanted"),
        ("llama.rope.scaling.type", u32(1), "llama.rope.scaling.type: found 1, wanted none or linear or yarn"),
        ("llama.rope.scaling.type", string("longrope"), "llama.rope.scaling.type: found 'longrope', wanted none"),
        ("llama.attention.sliding_window", INTEGERS, r"attention.sliding_window: found \[1, 2\], wanted a positive"),
        ("llama.block_count", u32(2), "9 tensors have no place in LlamaForCausalLM"),
        ("llama.block_count", u32(4), r"blk\.3\.attn_norm\.weight: missing"),
        ("llama.rope.dimension_count", u32(8), "rope.dimension_count: found 8, wanted 16"),
        ("tokenizer.ggml.model", string("bert"), "tokenizer.ggml.model: found 'bert', wanted gpt2 or llama"),
        ("tokenizer.ggml.model", INTEGERS, r"tokenizer.ggml.model: found array\(.*wanted text"),
        ("tokenizer.ggml.pre", INTEGERS, r"tokenizer.ggml.pre: found array\(.*wanted text"),
        ("tokenizer.ggml.pre", string("mystery"), "tokenizer.ggml.pre: found 'mystery'"),
        ("tokenizer.ggml.tokens", u32(1), "tokenizer.ggml.tokens: found 1, wanted an array"),
        ("tokenizer.ggml.tokens", array(ValueType.STRING, ["a"]), "token_type: 384 items for 1 tokens"),
        ("tokenizer.ggml.tokens", array(ValueType.STRING, ["a"] * 384), "'a' appears twice"),
        ("tokenizer.ggml.tokens", array(ValueType.STRING, ["\udcff"] * 384), r"tokens: '\\udcff' is not UTF-8"),
        ("tokenizer.ggml.token_type", u32(1), "token_type: found 1, wanted an array of integers"),
        ("tokenizer.ggml.token_type", array(ValueType.INT32, np.full(384, -1, np.int32)), "token_type: found -1"),
        ("tokenizer.ggml.merges", INTEGERS, r"merges: found array\(.*wanted an array of text"),
        ("tokenizer.ggml.merges", array(ValueType.STRING, ["a b", "ab"]), "merges: 'ab', wanted two tokens"),
        ("tokenizer.ggml.merges", array(ValueType.STRING, ["a \udcff"]), r"merges: 'a \\udcff' is not UTF-8"),
        ("tokenizer.ggml.add_bos_token", INTEGERS, r"add_bos_token: found array\(.*wanted true or false"),
        ("tokenizer.chat_template", INTEGERS, r"tokenizer.chat_template: found array\(.*wanted text"),
        ("tokenizer.chat_template.tool", u32(1), "tokenizer.chat_template.tool: found 1, wanted text"),
        ("tokenizer.chat_template", string("a\udcff"), r"tokenizer.chat_template: 'a\\udcff' is not UTF-8"),
    ],
)
def test_files_that_cannot_be_exported(key: str, value: Value, message: str, tiny_gguf: Path, tmp_path: Path) -> None:
    with open_gguf(tiny_gguf) as file:
        path = write_gguf(tmp_path / "m.gguf", Model({**file.metadata, key: value}, file.tensors))[0]
    with pytest.raises(InputError, match=f"m.gguf: .*{message}"):
        export(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("family", "key", "value", "message"),
    [
        ("gemma3", "attention.scale", f32(0), "attention.scale: found 0.0, wanted a positive number"),
        ("gemma3", "attention.scale", f32(np.nan), "attention.scale: found nan, wanted a positive number"),
        ("gemma3", "attention.scale", f32(3), "attention.scale: found 3.0, wanted at most 1"),
        ("gemma3", "attention.scale", INTEGERS, r"attention.scale: found \[1, 2\], wanted a positive number"),
        ("gemma3", "attention.sliding_window_pattern", u32(0), "sliding_window_pattern: found 0, wanted a positive"),
        (
            "gemma3",
            "attention.sliding_window_pattern",
            f32(6),
            r"sliding_window_pattern: found 6\.0, wanted a positive",
        ),
        ("gemma3", "attention.sliding_window_pattern", INTEGERS, r"found \[1, 2\], wanted .* each of 7 layers"),
        ("gemma3", "final_logit_softcapping", f32(np.inf), "softcapping: found inf, wanted a positive number"),
        ("gemma3", "rope.freq_base_swa", string("1"), "rope.freq_base_swa: found '1', wanted a positive number"),
        ("gemma3", "attention.sliding_window", u32(0), "sliding_window: found 0, wanted a positive integer"),
        ("qwen2-yarn", "attention.sliding_window", f32(np.nan), "sliding_window: found nan, wanted a positive integer"),
        ("qwen2-yarn", "rope.scaling.attn_factor", INTEGERS, r"attn_factor: found \[1, 2\], wanted a positive number"),
        ("qwen2-yarn", "rope.scaling.yarn_beta_fast", f32(-1), r"yarn_beta_fast: found -1\.0, wanted a positive"),
        ("qwen2-yarn", "rope.scaling.original_context_length", u32(0), "original_context_length: found 0, wanted"),
    ],
)
def test_strange_settings_of_a_family(
    family: str, key: str, value: Value, message: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    kept = tmp_path_factory.getbasetemp() / f"{family}.gguf"
    if not kept.exists():
        convert(make_checkpoint(family, tmp_path / "checkpoint"), kept)
    with open_gguf(kept) as file:
        key = f"{family.partition('-')[0]}.{key}"
        path = write_gguf(tmp_path / "m.gguf", Model({**file.metadata, key: value}, file.tensors))[0]
    with pytest.raises(InputError, match=f"m.gguf: {key.partition('.')[0]}.*{message}"):
        export(path, tmp_path / "out")


def test_export_records_its_source(tiny_gguf: Path, tmp_path: Path) -> None:
    made = json.loads((export(tiny_gguf, tmp_path / "out", "bf16") / "lltool.json").read_text())
    assert made == {
        "lltool.version": version("lltool"),
        "lltool.export.source": "tiny.gguf",
        "lltool.export.source_sha256": hashlib.sha256(tiny_gguf.read_bytes()).hexdigest(),
        "lltool.export.dtype": "bfloat16",
    }


def test_full_disk_and_lost_races_are_one_line(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def win(done: int, total: int) -> None:
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "config.json").write_text("theirs")

    with pytest.raises(InputError, match="out: exists and is not an empty folder; name another"):
        export(tiny_gguf, tmp_path / "out", progress=win)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "config.json"]

    def fill(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("lltool.quant.convert.export.write_safetensors", fill)
    with pytest.raises(InputError, match=r"new: the disk is full after 0 of [\d,]+ bytes"):
        export(tiny_gguf, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    return convert(make_checkpoint("llama", folder / "checkpoint"), folder / "tiny.gguf")


def test_an_empty_folder_is_filled(tiny_gguf: Path, tmp_path: Path) -> None:
    assert (export(tiny_gguf, tmp_path) / "config.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2-q4_1", "gemma3-270m-q4_k_m", "qwen25coder-0.5b-q4_k_m"])
def test_real_models_in_transformers(
    name: str, real_model: Callable[[str], Path], golden_file: GoldenFile, tmp_path: Path
) -> None:
    """Compares ids of long texts, and logits within the error of float16 weights."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = real_model(name)
    folder = export(path, tmp_path / "checkpoint")
    loaded = AutoTokenizer.from_pretrained(folder)
    prose, code = (golden_file(f"text/{file}").read_text()[:50_000] for file in ("eval_en.txt", "eval_code.py.txt"))
    with load_model(path, precision="f32") as model:
        for text in (prose, code, *PROBES):
            text = unicodedata.normalize("NFC", text)  # transformers does it for Qwen, engines of GGUF files do not
            assert loaded(text)["input_ids"] == model.tokenizer.encode(text, parse_special=True), text[:80]
        ids = model.tokenizer.encode(prose)[:64]
        found = model.forward([(model.new_sequence(), ids, "all")]).all()
    with torch.no_grad():
        transformer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        wanted = transformer(torch.tensor([ids])).logits[0].numpy()
    # Measured 0.0002 to 0.0006: weights of 5 bits with a float scale have more digits than float16.
    assert np.abs(found - wanted).max() < 2e-3 * np.ptp(wanted)


def test_smollm2_comes_back(real_model: Callable[[str], Path], tmp_path: Path) -> None:
    """Exports Q4_1 to a float16 checkpoint and converts it to F16: every tensor equals the decoded original."""
    path = real_model("smollm2-q4_1")
    folder = export(path, tmp_path / "checkpoint")
    with open_gguf(path) as original, open_gguf(convert(folder, tmp_path / "m.gguf")) as back:
        assert {t.name for t in back.tensors} == {t.name for t in original.tensors}
        for tensor in original.tensors:
            values = decode(tensor.data(), tensor.type)
            wanted = values if len(tensor.shape) == 1 else values.astype(np.float16)
            assert back.tensor(tensor.name).data().tobytes() == wanted.tobytes(), tensor.name
        for key in ("tokens", "token_type", "merges", "pre", "bos_token_id", "eos_token_id", "add_bos_token"):
            name = f"tokenizer.ggml.{key}"
            assert list(np.ravel(back.metadata[name].data)) == list(np.ravel(original.metadata[name].data)), key
        assert back.metadata["tokenizer.chat_template"] == original.metadata["tokenizer.chat_template"]
