"""The table of a family's settings, each of which is converted both ways: a key of config.json, and metadata of GGUF.

`describe` reads a checked config and returns GGUF keys, without the architecture's prefix; `restore` is its inverse.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lltool.gguf.architecture_keys import SCALES
from lltool.gguf.metadata import Value, ValueType, array, boolean, f32, u32
from lltool.quant.convert.families.config import SMALLEST, Config
from lltool.quant.convert.families.stored import Stored

Keys = dict[str, Value]
HEAD_DIMS = ("attention.key_length", "attention.value_length")
_MAX_HEAD_DIM = 1 << 16  # rotary frequencies take this much memory before any tensor is looked at


class Setting(ABC):
    """One row of the table. Raises InputError, in either direction, for values that the other side cannot express."""

    @abstractmethod
    def describe(self, config: Config) -> Keys: ...

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        """The keys of config.json, none by default; `config` has those of the rows before."""
        return {}


@dataclass(frozen=True)
class Integer(Setting):
    """A positive integer. `default` is for a file without the key, in either direction."""

    key: str
    gguf: str
    default: int | None = None

    def describe(self, config: Config) -> Keys:
        return {self.gguf: u32(config.integer(self.key, self.default))}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        return {self.key: stored.integer(self.gguf, self.default)}


def _same(number: float) -> float:
    return number


def reciprocal(number: float) -> float:
    return 1 / number


@dataclass(frozen=True)
class Number(Setting):
    """A number from `low` to `high`, which `convert` and its inverse `revert` translate.

    A number that is null or `neutral` has no effect and is not written. Without `neutral`, the key is required.
    """

    key: str
    gguf: str
    low: float = SMALLEST
    high: float = 1e30
    neutral: float | None = None
    convert: Callable[[float], float] = _same
    revert: Callable[[float], float] = _same

    def describe(self, config: Config) -> Keys:
        if self.neutral is not None and config.get(self.key) in (None, self.neutral):
            return {}
        return {self.gguf: f32(self.convert(config.number(self.key, None, self.low, self.high)))}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        if self.neutral is not None and not stored.keys.get(self.gguf):
            return {self.key: self.neutral}
        return {self.key: self.revert(stored.number(self.gguf))}


@dataclass(frozen=True)
class Softcap(Setting):
    """The bound of scores or logits; null means none, which is also the value of a file without the key."""

    key: str
    gguf: str

    def describe(self, config: Config) -> Keys:
        if config.get(self.key) is None:
            return {}
        return {self.gguf: f32(config.number(self.key, None, *SCALES))}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        return {self.key: stored.number(self.gguf) if stored.keys.get(self.gguf) else None}


class Expected(Setting):
    """A key that must have one of the `allowed` values, or be absent, because another would change the mathematics."""

    def __init__(self, key: str, *allowed: Any) -> None:
        self.key, self.allowed = key, allowed

    def describe(self, config: Config) -> Keys:
        config.expect(self.key, *self.allowed)
        return {}


class Fixed(Expected):
    """A key that must have one of the `allowed` values, of which the first is restored."""

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        return {self.key: self.allowed[0]}


@dataclass(frozen=True)
class ByTensor(Setting):
    """A key, true or false, that the existence of a tensor expresses in a GGUF file."""

    key: str
    tensor: str

    def describe(self, config: Config) -> Keys:
        config.expect(self.key, True, False)
        return {}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        return {self.key: self.tensor in stored.names}


class Ignored(Setting):
    """Keys that have no effect on the model because its class in transformers does not read them; they are noted."""

    def __init__(self, model: str, *keys: str) -> None:
        self.model, self.keys = model, keys

    def describe(self, config: Config) -> Keys:
        config.ignore(self.model, *self.keys)
        return {}


@dataclass(frozen=True)
class FixedNumber(Setting):
    """A number that the model's class fixes and no config states."""

    gguf: str
    value: float

    def describe(self, config: Config) -> Keys:
        return {self.gguf: f32(self.value)}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        found = stored.number(self.gguf)
        stored.require(self.gguf, np.float32(found) == np.float32(self.value), f"{self.value}, as the class has it")
        return {}


class FeedForward(Setting):
    """The width inside the MLP, which a config may leave out: `factor` times the model's."""

    def __init__(self, factor: int = 4, key: str = "intermediate_size") -> None:
        self.factor, self.key = factor, key

    def describe(self, config: Config) -> Keys:
        width = config.values["hidden_size"]
        config.derive("intermediate_size", config.integer(self.key, self.factor * width))
        return {"feed_forward_length": u32(config.values["intermediate_size"])}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        return {"intermediate_size": stored.integer("feed_forward_length")}


class Flag(Setting):
    """A key that is true or false, with the default of transformers' class in Family.defaults."""

    def __init__(self, key: str, gguf: str) -> None:
        self.key, self.gguf = key, gguf

    def describe(self, config: Config) -> Keys:
        config.require(self.key, isinstance(config.get(self.key), bool), "true or false")
        return {self.gguf: boolean(config.get(self.key))}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        found = stored.keys.get(self.gguf, True)
        stored.require(self.gguf, isinstance(found, bool), "true or false")
        return {self.key: bool(found)}


class OptionalWindow(Setting):
    """The sliding window of every layer; null means none."""

    def describe(self, config: Config) -> Keys:
        if config.get("sliding_window") is None:
            return {}
        return {"attention.sliding_window": u32(config.integer("sliding_window"))}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        window = "attention.sliding_window"
        return {"sliding_window": stored.integer(window) if stored.keys.get(window) else None}


class Unused(Setting):
    """Keys that change nothing, whatever their values."""

    def __init__(self, *keys: str) -> None:
        self.keys = keys

    def describe(self, config: Config) -> Keys:
        config.read.update(self.keys)
        return {}


class Layers(Setting):
    """The number of layers."""

    def describe(self, config: Config) -> Keys:
        return {"block_count": u32(config.integer("num_hidden_layers"))}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        layers, tensors = stored.integer("block_count"), len(stored.names)
        stored.require("block_count", layers <= tensors, f"no more than the {tensors} tensors")
        return {"num_hidden_layers": layers}


class Heads(Setting):
    """The heads of queries, and of keys and values."""

    def describe(self, config: Config) -> Keys:
        heads = config.integer("num_attention_heads")
        kv_heads = config.values["num_key_value_heads"] = config.integer("num_key_value_heads", heads)
        config.require("num_key_value_heads", heads % kv_heads == 0, f"a divisor of {heads}")
        return {"attention.head_count": u32(heads), "attention.head_count_kv": u32(kv_heads)}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        heads = stored.integer("attention.head_count")
        stored.require("attention.head_count", heads <= config["hidden_size"], "no more than embedding_length")
        return {
            "num_attention_heads": heads,
            "num_key_value_heads": stored.integer("attention.head_count_kv", heads),
        }


@dataclass(frozen=True)
class HeadDim(Setting):
    """The size of a head, which a config may leave out. It is written if it does not follow, or `always`."""

    always: bool = False

    def describe(self, config: Config) -> Keys:
        heads, width = config.values["num_attention_heads"], config.values["hidden_size"]
        config.require(
            "hidden_size", bool(config.get("head_dim")) or width % heads == 0, f"a multiple of {heads} heads"
        )
        head_dim = config.values["head_dim"] = config.integer("head_dim", width // heads)
        config.require("head_dim", head_dim % 2 == 0, f"an even number, not {head_dim}: rotary positions rotate pairs")
        config.require("head_dim", head_dim <= _MAX_HEAD_DIM, f"at most {_MAX_HEAD_DIM}")
        return dict.fromkeys(HEAD_DIMS, u32(head_dim)) if self.always or head_dim * heads != width else {}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        head_dim = stored.integer(HEAD_DIMS[0], config["hidden_size"] // config["num_attention_heads"])
        said = stored.keys.get(HEAD_DIMS[1], head_dim) == head_dim
        stored.require(HEAD_DIMS[1], said, f"{head_dim}; no config.json of this model can express it")
        return {"head_dim": head_dim}


GROUPED_QUERY: tuple[Setting, ...] = (
    Layers(),
    Integer("max_position_embeddings", "context_length"),
    Integer("hidden_size", "embedding_length"),
    Integer("intermediate_size", "feed_forward_length"),
    Heads(),
)
"""The sizes of a decoder with grouped-query attention."""

FULL_HEADS: tuple[Setting, ...] = (
    Layers(),
    Integer("max_position_embeddings", "context_length"),
    Integer("hidden_size", "embedding_length"),
    FeedForward(),
    Heads(),
)
"""The sizes of a decoder whose config may leave out the width inside the MLP."""

LAYER_EPSILON = Number("layer_norm_epsilon", "attention.layer_norm_epsilon", high=1.0)
RMS_EPSILON = Number("rms_norm_eps", "attention.layer_norm_rms_epsilon", high=1.0)
TIED = Expected("tie_word_embeddings", True, False)
DECODER: tuple[Setting, ...] = (*GROUPED_QUERY, RMS_EPSILON, HeadDim())
"""The sizes of Llama and models like it."""


def describe_windows(config: Config, slides: list[bool]) -> Keys:
    """Keys for the sliding window; a pattern of layers is written only if some layers have no window."""
    if not any(slides):
        return {}
    keys = {"attention.sliding_window": u32(config.integer("sliding_window"))}
    if not all(slides):
        keys["attention.sliding_window_pattern"] = array(ValueType.BOOL, np.array(slides))
    return keys
