"""The registry of families, looked up by a checkpoint's config.json or a GGUF file's architecture."""

from collections.abc import Mapping, Sequence
from reprlib import repr as short
from typing import Any

from lltool.gguf.errors import InputError
from lltool.quant.convert.families import (
    bert,
    classified,
    cohere,
    gemma,
    glm,
    gpt,
    gptneox,
    llama_kin,
    llama_variants,
    mamba,
    modern_bert,
    nemotron_h,
    olmo2,
    phi,
    qwen,
    qwen3_next,
    stablelm,
)
from lltool.quant.convert.families.arcee import ARCEE
from lltool.quant.convert.families.config import Config
from lltool.quant.convert.families.deepseek import DEEPSEEK2, DEEPSEEK3, GLM4_LITE
from lltool.quant.convert.families.ernie_moe import ERNIE_MOE
from lltool.quant.convert.families.exaone3 import EXAONE3
from lltool.quant.convert.families.falcon_h1 import FALCON_H1
from lltool.quant.convert.families.family import Family
from lltool.quant.convert.families.gemma3 import GEMMA3, GEMMA_EMBEDDING
from lltool.quant.convert.families.gemma3n import GEMMA3N
from lltool.quant.convert.families.gemma4 import GEMMA4
from lltool.quant.convert.families.glm4_moe import DOTS1, GLM4_MOE, SOLAR_OPEN
from lltool.quant.convert.families.gpt_oss import GPT_OSS
from lltool.quant.convert.families.granite_hybrid import GRANITE4, GRANITE_HYBRID
from lltool.quant.convert.families.granite_moe import GRANITE_MOE
from lltool.quant.convert.families.hunyuan_moe import HUNYUAN_MOE
from lltool.quant.convert.families.jamba import JAMBA
from lltool.quant.convert.families.kimi_linear import KIMI_LINEAR
from lltool.quant.convert.families.lfm2 import LFM2
from lltool.quant.convert.families.lfm2_moe import LFM2_MOE
from lltool.quant.convert.families.llama import HELIUM, LLAMA, MISTRAL
from lltool.quant.convert.families.llama4 import LLAMA4
from lltool.quant.convert.families.minimax_m2 import MINIMAX_M2
from lltool.quant.convert.families.ministral3 import MINISTRAL3
from lltool.quant.convert.families.mixtral import MIXTRAL, OLMOE
from lltool.quant.convert.families.phi_moe import PHI_MOE
from lltool.quant.convert.families.qwen2 import QWEN2
from lltool.quant.convert.families.qwen3 import QWEN3
from lltool.quant.convert.families.qwen_moe import QWEN2_MOE, QWEN3_MOE
from lltool.quant.convert.families.rwkv7 import RWKV7
from lltool.quant.convert.families.stored import Stored
from lltool.quant.convert.families.t5 import T5_ENCODER

_OF_THE_WHOLE = ("architectures", "model_type", "tie_word_embeddings")

FAMILIES = (
    MIXTRAL,  # before Llama, whose architecture it has
    LLAMA,
    MISTRAL,
    HELIUM,
    QWEN2,
    QWEN3,
    GEMMA_EMBEDDING,  # before Gemma 3, whose classes it has
    GEMMA3,
    GEMMA3N,
    GEMMA4,
    QWEN2_MOE,
    QWEN3_MOE,
    OLMOE,
    GRANITE_MOE,
    GLM4_MOE,
    ERNIE_MOE,
    DOTS1,
    GPT_OSS,
    DEEPSEEK2,
    DEEPSEEK3,
    GLM4_LITE,
    PHI_MOE,
    MINIMAX_M2,
    HUNYUAN_MOE,
    SOLAR_OPEN,
    LLAMA4,
    MINISTRAL3,
    ARCEE,
    EXAONE3,
    *llama_kin.FAMILIES,
    *llama_variants.FAMILIES,
    *gemma.FAMILIES,
    *phi.FAMILIES,
    *stablelm.FAMILIES,
    *olmo2.FAMILIES,
    *cohere.FAMILIES,
    *glm.FAMILIES,
    *gpt.FAMILIES,
    *gptneox.FAMILIES,
    *qwen.FAMILIES,
    LFM2,
    LFM2_MOE,
    JAMBA,
    FALCON_H1,
    GRANITE_HYBRID,
    GRANITE4,
    *mamba.FAMILIES,
    *nemotron_h.FAMILIES,
    *qwen3_next.FAMILIES,
    KIMI_LINEAR,
    RWKV7,
    *bert.FAMILIES,
    *modern_bert.FAMILIES,
    T5_ENCODER,
    *classified.FAMILIES,
)


def find_family(config: Mapping[str, Any], file: str) -> tuple[Family, Config]:
    """The family of a config.json (named `file` in errors), and the config of its text model.

    As in transformers, model_type decides, that of the text model in a multimodal one; if architectures names a class,
    it must be a known one. Raises InputError for a model that is not supported.
    """
    models, kind = config.get("architectures"), config.get("model_type")
    text = config.get("text_config")
    inner = text.get("model_type") if isinstance(text, dict) else None
    model = models[0] if isinstance(models, list) and models else None
    able = [family for family in FAMILIES if family.takes(config)]
    by_model = next((family for family in able if model in family.models), None)
    of_kind = _of_kind(inner, able) or _of_kind(kind, able)
    by_kind = next((family for family in of_kind if model in family.models), next(iter(of_kind), None))
    if by_kind and model in by_kind.models:
        by_model = by_kind
    family = by_kind or by_model
    if family is None or (model is not None and by_model is None):
        known = ", ".join(model for family in FAMILIES for model in family.models)
        stated = f"architecture {short(model)}" if model else f"model_type {short(kind)} without architectures"
        raise InputError(f"{file}: {stated} is not supported; this version converts {known}")
    parsed = Config(file, _text_config(config, file), family.defaults, family.spelling)
    if family.prepare:
        family.prepare(parsed)
    if by_model and by_kind and model not in by_kind.models:
        parsed.notes.append(f"config.json says model_type {kind} and architectures {model}; model_type decides")
    return family, parsed


def _of_kind(kind: Any, families: Sequence[Family]) -> list[Family]:
    return [family for family in families if kind in family.model_types]


def _text_config(config: Mapping[str, Any], file: str) -> Mapping[str, Any]:
    """The config of the text model; in a multimodal model it is a part, to which keys about tokens are added."""
    if "text_config" not in config:
        return config
    inner = config["text_config"]
    if not isinstance(inner, dict):
        raise InputError(f"{file}: text_config: found {short(inner)}, wanted an object")
    outer = {key: value for key, value in config.items() if key.endswith("token_id") or key in _OF_THE_WHOLE}
    return {**outer, **inner}


def family_of(stored: Stored) -> Family:
    """The family that a GGUF file is exported as. Raises InputError if its general.architecture is not supported."""
    for family in FAMILIES:
        if family.architecture == stored.architecture and family.restores(stored):
            return family
    known = ", ".join(sorted({family.architecture for family in FAMILIES}))
    raise InputError(f"general.architecture: found {stored.architecture!r}; this version exports {known}")
