"""Looks for mistakes in a model file that make answers wrong, endless or impossible."""

from collections.abc import Callable, Iterator, Mapping

from lltool.engine.lint.finding import SEVERITIES, Finding
from lltool.engine.lint.text import check_text
from lltool.engine.lint.weights import check_file_type, check_runs, check_values
from lltool.gguf.metadata import INTEGERS, Value, ValueType
from lltool.gguf.reader import GGUFFile

_NUMBERS = INTEGERS | {ValueType.FLOAT32, ValueType.FLOAT64}


def lint(file: GGUFFile, *, values: bool = True, progress: Callable[[int, int], None] | None = None) -> list[Finding]:
    """The findings in a file, errors first. Without `values`, the weights themselves are not read.

    That the file is whole, that its offsets are aligned and that no tensors overlap is checked when it is opened.
    """
    found = [
        *check_runs(file),
        *check_context(file.metadata),
        *check_file_type(file.metadata, iter(file.tensors)),
        *check_text(file),
        *(check_values(file, progress) if values else ()),
    ]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


def check_context(metadata: Mapping[str, Value]) -> Iterator[Finding]:
    """Compares the context length with the scaling of the rotary positions."""
    stated = metadata.get("general.architecture")
    prefix = f"{stated.data if stated else ''}."
    key = f"{prefix}context_length"
    context = _number(metadata, key)
    if context is None or context < 1:
        found = f"{key} is {'missing' if context is None else f'{context:g}'}"
        why = "programs have to guess how long a text the model can read"
        yield Finding("warning", "context", found, why)
        return
    scaling = f"{prefix}rope.scaling"
    factor = _number(metadata, f"{scaling}.factor") or 1.0
    original = _number(metadata, f"{scaling}.original_context_length")
    kind = metadata.get(f"{scaling}.type")
    if kind is not None and kind.data == "none" and factor != 1:
        found = f"{scaling}.type is none, but {scaling}.factor is {factor:g}"
        yield Finding("warning", "context", found, "programs may or may not apply the factor")
    if original is None:
        if factor > 1 and kind is not None and kind.data == "yarn":
            found = f"{scaling}.original_context_length is missing, although positions are scaled by YaRN"
            why = f"the context of {context:g} counts as the original one, which changes all positions"
            cure = (f"{scaling}.original_context_length=uint32:{int(context / factor)}",)
            yield Finding("warning", "context", found, why, cure)
        return
    reach = int(original * factor)
    if original > context:
        found = f"{scaling}.original_context_length is {original:g}, more than the context of {context:g}"
        yield Finding("warning", "context", found, "the scaling was made for another context")
    elif context > reach * 1.01:  # a factor may be rounded
        found = f"{key} is {context:g}, but the scaling of positions reaches {reach}: {original:g} times {factor:g}"
        yield Finding("warning", "context", found, "answers to longer texts get worse", (f"{key}={reach}",))


def _number(metadata: Mapping[str, Value], key: str) -> float | None:
    value = metadata.get(key)
    return float(value.data) if value is not None and value.type in _NUMBERS else None
