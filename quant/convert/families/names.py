"""Normalization of checkpoint tensor names to those of transformers, without the prefixes of wrappers."""

import re
from collections.abc import Iterable, Mapping

_INSIDE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""Prefixes that torch.compile and FSDP put before the modules that they wrap."""

_BEFORE = ("module.", "base_model.model.")
"""Prefixes that DataParallel and peft put before a whole model."""

_ADAPTER = (".lora_", ".base_layer.", ".modules_to_save.", ".original_module.")


def plain_name(
    name: str,
    prefixes: Mapping[str, str],
    base: str = "model.",
    inside: tuple[str, ...] = ("embed_tokens.", "layers.", "norm."),
    outside: tuple[str, ...] = ("lm_head.",),
) -> str:
    """The name that transformers gives the tensor; `prefixes` maps the family's prefixes to their replacements.

    `inside` follow `base` in a causal language model and begin the names in its base model; `outside` never follow it.
    """
    for wrapper in _INSIDE:
        name = name.replace(wrapper, "")
    while wrapped := [wrapper for wrapper in _BEFORE if name.startswith(wrapper)]:
        name = name.removeprefix(wrapped[0])
    for prefix, plain in prefixes.items():
        if name.startswith(prefix):
            name = plain + name.removeprefix(prefix)
            break
    bare = name
    while base and bare.startswith(base):
        bare = bare.removeprefix(base)
    if bare.startswith(inside):
        return base + bare
    return bare if bare.startswith(outside) else name


def count_layers(names: Iterable[str], block: str) -> int:
    """The number of layers: one more than the highest number that follows `block` in the plain names."""
    found = (re.match(rf"{re.escape(block)}([0-9]{{1,9}})\.", name) for name in names)
    return max((int(match[1]) + 1 for match in found if match), default=0)


def find_adapter(names: Iterable[str]) -> str | None:
    """A tensor name that only an unmerged adapter has, or None."""
    return next((name for name in names if any(part in name for part in _ADAPTER)), None)
