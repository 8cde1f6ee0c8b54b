"""Finds the best mix of types for a number of bytes by measuring which tensors need more bits.

Each tensor alone is quantized to one probe type, and the divergence that this causes is measured on a calibration text.
Another type's divergence is predicted from it by the ratio of the two importance-weighted errors, and the divergences
of all tensors add up, so finding the best mix is a knapsack problem. Probes do not depend on the target size; they are
kept in a file, from which an interrupted search also resumes.
"""

import json
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lltool.engine.model import Model
from lltool.eval.common.steps import CountProgress
from lltool.eval.common.store import write_whole
from lltool.eval.scoring.perplexity import bos_of
from lltool.eval.search.sensitivity import pick_windows, probe
from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import LAYOUT, GGMLType, row_bytes
from lltool.gguf.header import DEFAULT_ALIGNMENT, align
from lltool.gguf.regular_file import read_bytes
from lltool.gguf.source import Source, Tensor
from lltool.quant.allocate import TypeOption, allocate
from lltool.quant.choose import PLAIN, Options, choose_types
from lltool.quant.codec import ENCODED, NEEDS_IMPORTANCE, decode, encode
from lltool.quant.guidance import Guidance
from lltool.quant.recipe_language import TYPES, Recipe, Rule, format_recipe, parse_recipe
from lltool.quant.recipes import RECIPES, find_recipe

PROBE = GGMLType.Q4_0
WINDOW = 256  # tokens in a window of calibration text

_SAMPLE = 256  # rows of a tensor on which its errors are measured

Floats = NDArray[np.float32]


@dataclass
class Evidence:
    """The measurements: each tensor's divergence in the probe type, and its squared error in each type.

    `key` identifies what they were made on. With a `path`, each measurement is saved there at once, and measurements
    with the same key are reused. Raises InputError if `path` is not a file of probes.
    """

    key: Mapping[str, Any]
    path: Path | None = None
    divergences: dict[str, float] = field(default_factory=dict)
    errors: dict[str, dict[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path is not None and self.path.exists():
            try:
                kept = json.loads(read_bytes(self.path))
            except (ValueError, RecursionError) as error:
                raise InputError(f"{self.path}: not a file of probes ({error}); name another") from error
            if not isinstance(kept, dict) or not {"key", "divergences", "errors"} <= kept.keys():
                raise InputError(f"{self.path}: not a file of probes, and would be replaced by one; name another")
            if kept.get("key") == json.loads(json.dumps(self.key)):
                self.divergences, self.errors = kept["divergences"], kept["errors"]

    def predict(self, tensor: str, type: GGMLType) -> float:
        """The divergence that the tensor causes in this type; 0 for a type that stores it unchanged."""
        errors = self.errors[tensor]
        probed = max(errors[PROBE.name], np.finfo(float).tiny)
        return self.divergences[tensor] * errors.get(type.name, 0.0) / probed

    def save(self) -> None:
        if self.path is not None:
            table = {"key": self.key, "divergences": self.divergences, "errors": self.errors}
            write_whole(self.path, json.dumps(table, indent=1))


@dataclass(frozen=True)
class Mix:
    """A type for each quantizable tensor, their total `bytes` in a file, and the predicted divergence."""

    types: Mapping[str, GGMLType]
    bytes: int
    predicted: float

    def recipe(self, name: str, note: str) -> Recipe:
        """The mix as a recipe: the most frequent type is the base, and tensors of other types are named."""
        base = Counter(self.types.values()).most_common(1)[0][0]
        names: dict[GGMLType, list[str]] = {}
        for tensor, type in self.types.items():
            if type != base:
                names.setdefault(type, []).append(tensor)
        rules = [Rule(type, tensors=tuple(tensors)) for type, tensors in sorted(names.items())]
        recipe = Recipe(name, base, None, note, rules=tuple(rules))
        return parse_recipe(
            tomllib.loads(format_recipe(recipe)), name, RECIPES, {}, name
        )  # parsing finds the file type


def quantizable(source: Source) -> list[Tensor]:
    """The tensors that recipes quantize and whose rows fit the probe type."""
    choices = choose_types(source, find_recipe(PROBE.name), Options(pure=True), has_importance=True)
    return [choice.tensor for choice in choices if choice.type == PROBE and choice.wanted == PROBE]


def collect_evidence(
    model: Model,
    guidance: Guidance | None,
    ids: Sequence[int],
    evidence: Evidence,
    *,
    tokens: int = 512,
    progress: CountProgress | None = None,
) -> None:
    """Adds the missing measurements to `evidence`: errors first, then probes on `tokens` tokens of a text.

    `progress` is called with the measurements done and their total, which is two for each tensor.
    """
    tensors = quantizable(model.file)
    by_name = {tensor.name: tensor for tensor in tensors}
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, 2 * len(tensors))

    for tensor in tensors:
        if tensor.name not in evidence.errors:
            evidence.errors[tensor.name] = measure_errors(tensor, _importance(guidance, tensor))
            evidence.save()
        advance()

    def damage(name: str, weights: Floats) -> Floats:
        importance = _importance(guidance, by_name[name])
        parts = np.split(weights, 1 if importance is None else len(importance))
        return np.concatenate([_as_type(part, PROBE, importance, expert) for expert, part in enumerate(parts)])

    def found(name: str, divergence: float) -> None:
        evidence.divergences[name] = divergence
        evidence.save()
        advance()

    missing = [name for name in by_name if name not in evidence.divergences]
    done += len(tensors) - len(missing)
    windows = pick_windows(ids, max(1, tokens // WINDOW), min(WINDOW, tokens), bos_of(model))
    probe(model.program, windows, missing, damage, found, threads=model.threads)


def measure_errors(tensor: Tensor, importance: Floats | None) -> dict[str, float]:
    """The sum of importance-weighted squared errors in each type that fits the rows, over a sample of rows.

    `importance` is (experts, columns).
    """
    experts = 1 if importance is None else len(importance)
    rows = np.unique(np.linspace(0, tensor.rows - 1, min(_SAMPLE, tensor.rows)).astype(int))
    weights = np.concatenate([decode(tensor.read(row, row + 1), tensor.type) for row in rows.tolist()])
    owners = rows * experts // tensor.rows
    errors = {}
    for type in _types(tensor, importance is not None):
        total = 0.0
        for expert in np.unique(owners).tolist():
            mine = weights[owners == expert]
            error = (mine - _as_type(mine, type, importance, expert)).astype(np.float64) ** 2
            total += float((error if importance is None else error * importance[expert]).sum())
        errors[type.name] = total
    return errors


def find_mix(tensors: Iterable[Tensor], evidence: Evidence, budget: int) -> Mix:
    """The types with the least predicted divergence for `tensors` in at most `budget` bytes, including padding.

    Raises InputError if even the smallest types need more.
    """
    tensors = list(tensors)
    choices = []
    for tensor in tensors:
        names = [*evidence.errors[tensor.name]] + ([tensor.type.name] if tensor.type in PLAIN else [])
        types = [GGMLType[name] for name in names]
        choices.append([(type, _bytes_of(tensor, type), evidence.predict(tensor.name, type)) for type in types])
    picked = allocate([[TypeOption(size, cost) for _, size, cost in options] for options in choices], budget)
    if picked is None:
        least = sum(min(size for _, size, _ in options) for options in choices)
        raise InputError(f"{budget} bytes for the matrices, but they take {least} in the smallest types; ask for more")
    best = [options[index] for options, index in zip(choices, picked, strict=True)]
    found = {tensor.name: type for tensor, (type, _, _) in zip(tensors, best, strict=True)}
    return Mix(found, sum(size for _, size, _ in best), sum(cost for _, _, cost in best))


def least_bytes(tensors: Iterable[Tensor], *, has_importance: bool) -> int:
    """The bytes of `tensors`, including padding, in the smallest types that `find_mix` may choose."""
    total = 0
    for tensor in tensors:
        kept = [tensor.type] if tensor.type in PLAIN else []
        total += min(_bytes_of(tensor, type) for type in [*_types(tensor, has_importance), *kept])
    return total


def _importance(guidance: Guidance | None, tensor: Tensor) -> Floats | None:
    return None if guidance is None else guidance.of(tensor, tensor.name)


def _types(tensor: Tensor, has_importance: bool) -> list[GGMLType]:
    return [
        type
        for type in TYPES.values()
        if type in ENCODED - PLAIN
        and tensor.columns % LAYOUT[type].block == 0
        and (has_importance or type not in NEEDS_IMPORTANCE)
    ]


def _as_type(weights: Floats, type: GGMLType, importance: Floats | None, expert: int) -> Floats:
    return decode(encode(weights, type, None if importance is None else importance[expert]), type)


def _bytes_of(tensor: Tensor, type: GGMLType) -> int:
    return align(tensor.rows * row_bytes(type, tensor.columns), DEFAULT_ALIGNMENT)
