"""The best mix of types for so many bytes: which tensors need their bits, found by measuring.

Each tensor alone is replaced by what one probe type makes of it, and the divergence that this causes is measured on a
calibration text. Another type's divergence is predicted from it by the ratio of the two importance-weighted errors, and
the divergences of all tensors add up; so the best mix is a knapsack. Probes do not depend on the size that is wanted:
they are kept in a file, which also lets a search go on that was interrupted.
"""

import json
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lltool.engine.model import Model
from lltool.eval.perplexity import bos_of
from lltool.eval.sensitivity import pick_windows, probe
from lltool.eval.store import write_whole
from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import LAYOUT, GGMLType, row_bytes
from lltool.gguf.header import DEFAULT_ALIGNMENT, align
from lltool.gguf.source import Source, Tensor
from lltool.quant.allocate import Candidate, allocate
from lltool.quant.choose import PLAIN, Options, choose_types
from lltool.quant.codec import ENCODED, NEEDS_IMPORTANCE, decode, encode
from lltool.quant.guidance import Guidance
from lltool.quant.recipe_language import TYPES, Recipe, Rule, format_recipe, parse_recipe
from lltool.quant.recipes import RECIPES, find_recipe

PROBE = GGMLType.Q4_0
WINDOW = 256  # tokens of a window of calibration text

_SAMPLE = 256  # rows of a tensor that its errors are measured on

Floats = NDArray[np.float32]
Progress = Callable[[int, int], None]


@dataclass
class Evidence:
    """What was measured: the divergence of each tensor in the probe type, and the squared error of each type.

    `key` says on what. With a `path`, each measurement is kept there at once, and one of the same key is found again.
    """

    key: Mapping[str, Any]
    path: Path | None = None
    divergences: dict[str, float] = field(default_factory=dict)
    errors: dict[str, dict[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path is not None and self.path.exists():
            try:
                kept = json.loads(self.path.read_text())
            except ValueError as error:
                raise InputError(f"{self.path}: not a file of probes ({error}); delete it") from error
            if kept.get("key") == json.loads(json.dumps(self.key)):
                self.divergences, self.errors = kept["divergences"], kept["errors"]

    def predict(self, tensor: str, type: GGMLType) -> float:
        """The divergence that the tensor in this type causes; none for a type that holds it as it is."""
        errors = self.errors[tensor]
        probed = max(errors[PROBE.name], np.finfo(float).tiny)
        return self.divergences[tensor] * errors.get(type.name, 0.0) / probed

    def save(self) -> None:
        if self.path is not None:
            table = {"key": self.key, "divergences": self.divergences, "errors": self.errors}
            write_whole(self.path, json.dumps(table, indent=1))


@dataclass(frozen=True)
class Mix:
    """A type for each tensor that was up for choice, `bytes` of them as they lie in a file, the divergence expected."""

    types: Mapping[str, GGMLType]
    bytes: int
    predicted: float

    def recipe(self, name: str, note: str) -> Recipe:
        """The mix as a recipe: the type of most tensors is the base, the others are named."""
        base = Counter(self.types.values()).most_common(1)[0][0]
        names: dict[GGMLType, list[str]] = {}
        for tensor, type in self.types.items():
            if type != base:
                names.setdefault(type, []).append(tensor)
        rules = [Rule(type, tensors=tuple(tensors)) for type, tensors in sorted(names.items())]
        recipe = Recipe(name, base, None, note, rules=tuple(rules))
        return parse_recipe(tomllib.loads(format_recipe(recipe)), name, RECIPES, {}, name)  # finds its file type


def quantizable(source: Source) -> list[Tensor]:
    """The tensors that recipes quantize, of rows that the probe type fits."""
    choices = choose_types(source, find_recipe(PROBE.name), Options(pure=True), has_importance=True)
    return [choice.tensor for choice in choices if choice.type == PROBE and choice.wanted == PROBE]


def measure(
    model: Model,
    guidance: Guidance | None,
    ids: Sequence[int],
    evidence: Evidence,
    *,
    tokens: int = 512,
    progress: Progress | None = None,
) -> None:
    """Adds to `evidence` what it lacks: errors first, then probes on `tokens` tokens of a text.

    `progress` is told tensors done and twice their number.
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
    """Sum of importance-weighted squared errors in each type that fits the rows, over a sample of them.

    `importance` is that of the columns, (experts, columns).
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
    """The types of least predicted divergence for `tensors` in at most `budget` bytes, padding between them included.

    Raises InputError when even the smallest types need more.
    """
    tensors = list(tensors)
    choices = []
    for tensor in tensors:
        names = [*evidence.errors[tensor.name]] + ([tensor.type.name] if tensor.type in PLAIN else [])
        types = [GGMLType[name] for name in names]
        choices.append([(type, _bytes_of(tensor, type), evidence.predict(tensor.name, type)) for type in types])
    picked = allocate([[Candidate(size, cost) for _, size, cost in options] for options in choices], budget)
    if picked is None:
        least = sum(min(size for _, size, _ in options) for options in choices)
        raise InputError(f"{budget} bytes for the matrices, but in the smallest types they take {least}; ask for more")
    best = [options[index] for options, index in zip(choices, picked, strict=True)]
    found = {tensor.name: type for tensor, (type, _, _) in zip(tensors, best, strict=True)}
    return Mix(found, sum(size for _, size, _ in best), sum(cost for _, _, cost in best))


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
