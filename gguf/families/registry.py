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
    models = config.get("architectures") or ["(none)"]
    for family in FAMILIES:
        if models[0] in family.models:
            text = {**config, **config["text_config"]} if "text_config" in config else dict(config)
            text.pop("text_config", None)
            return family, Config(file, text, family.defaults)
    known = ", ".join(model for family in FAMILIES for model in family.models)
    raise InputError(f"{file}: architecture {models[0]} is not supported; this version converts {known}")


def family_of(architecture: str) -> Family:
    """The family of a GGUF file's general.architecture."""
    for family in FAMILIES:
        if family.architecture == architecture:
            return family
    known = ", ".join(sorted({family.architecture for family in FAMILIES}))
    raise InputError(f"general.architecture: found {architecture!r}; this version exports {known}")
