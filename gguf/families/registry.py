"""The families, found by the class in a checkpoint's config.json or by a GGUF file's architecture."""

from collections.abc import Mapping
from typing import Any

from lltool.gguf.errors import InputError
from lltool.gguf.families.config import Config
from lltool.gguf.families.family import Family
from lltool.gguf.families.gemma3 import GEMMA3
from lltool.gguf.families.llama import LLAMA, MISTRAL
from lltool.gguf.families.qwen2 import QWEN2
from lltool.gguf.families.qwen3 import QWEN3

FAMILIES = (LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA3)


def find_family(config: Mapping[str, Any], file: str) -> tuple[Family, Config]:
    """The family of a config.json (named `file` in errors), and the config of its text model."""
    models = config.get("architectures")
    model = models[0] if isinstance(models, list) and models else None
    for family in FAMILIES:
        if model in family.models:
            inner = config.get("text_config", {})
            if not isinstance(inner, dict):
                raise InputError(f"{file}: text_config: found {inner!r}, wanted an object")
            text = {key: value for key, value in config.items() if key != "text_config"}
            return family, Config(file, {**text, **inner}, family.defaults)
    known = ", ".join(model for family in FAMILIES for model in family.models)
    raise InputError(f"{file}: architecture {model} is not supported; this version converts {known}")


def family_of(architecture: str) -> Family:
    """The family of a GGUF file's general.architecture."""
    for family in FAMILIES:
        if family.architecture == architecture:
            return family
    known = ", ".join(sorted({family.architecture for family in FAMILIES}))
    raise InputError(f"general.architecture: found {architecture!r}; this version exports {known}")
