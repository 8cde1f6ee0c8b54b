"""The keys `general.sampling.*`, with which a GGUF file ships the sampling settings that its model wants."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lltool.gguf.errors import InputError
from lltool.gguf.metadata import Value, ValueType

PREFIX = "general.sampling."


@dataclass(frozen=True)
class SamplingKey:
    """A key without its prefix, its type, and the names that generation_config.json has for it, the usual one first."""

    name: str
    type: ValueType
    stated_as: tuple[str, ...]


KEYS: Mapping[str, SamplingKey] = {
    setting: SamplingKey(name, type, stated)
    for setting, name, type, stated in (
        ("samplers", "sequence", ValueType.STRING, ("sequence",)),
        ("top_k", "top_k", ValueType.INT32, ("top_k",)),
        ("top_p", "top_p", ValueType.FLOAT32, ("top_p",)),
        ("min_p", "min_p", ValueType.FLOAT32, ("min_p",)),
        ("xtc_probability", "xtc_probability", ValueType.FLOAT32, ("xtc_probability",)),
        ("xtc_threshold", "xtc_threshold", ValueType.FLOAT32, ("xtc_threshold",)),
        ("temperature", "temp", ValueType.FLOAT32, ("temperature",)),
        ("repeat_last_n", "penalty_last_n", ValueType.INT32, ("penalty_last_n",)),
        ("repeat_penalty", "penalty_repeat", ValueType.FLOAT32, ("repetition_penalty", "penalty_repeat")),
        ("mirostat", "mirostat", ValueType.INT32, ("mirostat",)),
        ("mirostat_tau", "mirostat_tau", ValueType.FLOAT32, ("mirostat_tau",)),
        ("mirostat_eta", "mirostat_eta", ValueType.FLOAT32, ("mirostat_eta",)),
    )
}
"""The keys by the names of lltool's settings."""


def sampling_metadata(generation: Mapping[str, Any], name: str) -> dict[str, Value]:
    """The keys for what a generation_config.json states; `name` is its path.

    Raises InputError for a value that its key cannot hold.
    """
    found = {}
    for key in KEYS.values():
        stated = next((field for field in key.stated_as if generation.get(field) is not None), None)
        if stated is not None:
            found[PREFIX + key.name] = Value(key.type, _converted(key.type, generation[stated], f"{name}: {stated}"))
    return found


def sampling_fields(metadata: Mapping[str, Value]) -> dict[str, Any]:
    """What the keys of a GGUF file state, in the fields of a generation_config.json."""
    stored = {key.stated_as[0]: metadata.get(PREFIX + key.name) for key in KEYS.values()}
    return {field: shortest(value) for field, value in stored.items() if value is not None}


def shortest(value: Value) -> Any:
    """The data of a value; a float32 is the decimal number of fewest digits that is stored as it."""
    return float(str(np.float32(value.data))) if value.type == ValueType.FLOAT32 else value.data


def _converted(type: ValueType, value: Any, name: str) -> Any:
    if type == ValueType.STRING and isinstance(value, str):
        return value
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if type == ValueType.FLOAT32 and is_number and abs(value) <= 3e38:
        return float(value)
    if type == ValueType.INT32 and is_number and abs(value) < 1 << 31 and value == int(value):
        return int(value)
    what = {ValueType.STRING: "a text", ValueType.INT32: "a whole number"}.get(type, "a number")
    raise InputError(f"{name} is {value!r}, wanted {what}; correct it or remove it")
