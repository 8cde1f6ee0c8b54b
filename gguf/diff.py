"""The differences between two GGUF models in their headers: metadata, and the tensors' names, shapes and types."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import Any

from lltool.gguf.architecture_keys import show
from lltool.gguf.describe import plain_value
from lltool.gguf.metadata import Value, ValueType
from lltool.gguf.source import Source, Tensor

_SHOWN = 3  # of the items in which two arrays differ


@dataclass(frozen=True)
class KeyChange:
    """A key that differs; `before` or `after` is None where a model does not have it.

    Of two arrays, `items` are the first places at which they differ, with the item in each (None past the end).
    """

    key: str
    before: Value | None
    after: Value | None
    items: Sequence[tuple[int, Any, Any]] = ()


@dataclass(frozen=True)
class TensorChange:
    """A tensor that only one model has, or that has another shape or type."""

    name: str
    before: Tensor | None
    after: Tensor | None


def compare_metadata(before: Mapping[str, Value], after: Mapping[str, Value]) -> list[KeyChange]:
    """The keys that differ, in the order of the first model and then of the second. Numbers are compared as bits."""
    found = []
    for key in dict.fromkeys([*before, *after]):
        old, new = before.get(key), after.get(key)
        if old is None or new is None:
            found.append(KeyChange(key, old, new))
        elif not _is_same(old, new):
            is_array = ValueType.ARRAY in (old.type, new.type) and old.type == new.type
            found.append(KeyChange(key, old, new, _first_items(old, new) if is_array else ()))
    return found


def compare_tensors(before: Source, after: Source) -> list[TensorChange]:
    """The tensors that differ in name, shape or type."""
    old, new = ({tensor.name: tensor for tensor in source.tensors} for source in (before, after))
    return [
        TensorChange(name, old.get(name), new.get(name))
        for name in dict.fromkeys([*old, *new])
        if name not in old or name not in new or _form(old[name]) != _form(new[name])
    ]


def describe_change(change: KeyChange) -> str:
    """The old and the new value in at most 60 characters each, an array as its type and length; and changed types."""
    old, new = change.before, change.after
    has_types = old is not None and new is not None and old.type != new.type
    return " -> ".join(_describe(value, has_types) for value in (old, new))


def _describe(value: Value | None, has_type: bool) -> str:
    if value is None:
        return "none"
    if value.item is not None:
        return f"{len(value.data)} {value.item.name.lower()}"
    return f"{show(value)} ({value.type.name.lower()})" if has_type else show(value)


def _form(tensor: Tensor) -> tuple[tuple[int, ...], int]:
    return tensor.shape, tensor.type


def _is_same(old: Value, new: Value) -> bool:
    if (old.type, old.item) != (new.type, new.item):
        return False
    one, other = plain_value(old), plain_value(new)
    return bool(one == other) or repr(one) == repr(other)  # the latter for NaN


def _first_items(old: Value, new: Value) -> list[tuple[int, Any, Any]]:
    pairs = enumerate(zip_longest(plain_value(old), plain_value(new)))
    return [(index, one, other) for index, (one, other) in islice((p for p in pairs if p[1][0] != p[1][1]), _SHOWN)]
