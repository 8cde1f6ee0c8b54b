"""What `lltool gate record` leaves: a JSON file, and beside it, with the ending .npz, the reference that it names.

The JSON file is `Baseline` field by field.
"""

import json
import re
import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np

from lltool.engine.tokenizer import Tokenizer
from lltool.eval.gate.prompts import Answer, Followed
from lltool.eval.gate.runs import Setting, TextRun
from lltool.eval.gate.speed import Speed
from lltool.eval.provenance import vocabulary_sha256
from lltool.eval.reference_file import Reference, open_reference
from lltool.eval.store import write_whole
from lltool.gguf.digest import sha256_of
from lltool.gguf.errors import InputError
from lltool.gguf.reader import GGUFFile

_SHAPE = ("block_count", "embedding_length", "feed_forward_length", "attention.head_count", "attention.head_count_kv")
FORMAT = "lltool gate baseline"
VERSION = 1


@dataclass(frozen=True)
class ModelFacts:
    """The file, and what makes it this model and no other: `shape` is metadata that no honest change of it touches."""

    path: str
    sha256: str
    shape: dict[str, Any]
    vocabulary_sha256: str


@dataclass(frozen=True)
class TextFacts:
    path: str
    sha256: str


@dataclass(frozen=True)
class Run:
    """An honest run as users run the model: over the text, and along each answer."""

    setting: Setting
    text: TextRun
    answers: list[Followed]


@dataclass(frozen=True)
class Exact:
    """Honest runs in float32 over the first `windows` windows."""

    windows: int
    runs: list[TextRun]


@dataclass(frozen=True)
class Baseline:
    format: str
    version: int
    tool: str
    cpu: str
    model: ModelFacts
    text: TextFacts
    reference: str  # the file's name
    reference_sha256: str
    rounding: float  # a divergence that other orders of float32 sums stay below
    runs: list[Run]
    exact: Exact
    answers: list[Answer]
    speed: Speed


def describe(file: GGUFFile, tokenizer: Tokenizer) -> ModelFacts:
    architecture = file.metadata["general.architecture"].data
    keys = {key: file.metadata.get(f"{architecture}.{key}") for key in _SHAPE}
    shape = {key: np.asarray(value.data).tolist() for key, value in keys.items() if value is not None}
    return ModelFacts(
        str(file.path), sha256_of(file.paths), {"architecture": architecture, **shape}, vocabulary_sha256(tokenizer)
    )


def check_is_of(path: Path, baseline: Baseline, facts: ModelFacts) -> None:
    """Raises InputError unless the baseline in `path` is of this model, whatever its weights are now."""
    then, now = baseline.model.shape, facts.shape
    for key in sorted(then.keys() | now.keys()):
        if then.get(key) != now.get(key):
            raise InputError(
                f"{facts.path}: {key} is {now.get(key)}, but {then.get(key)} in {path}, a baseline of another model; "
                "name that model with -m or record anew"
            )
    if facts.vocabulary_sha256 != baseline.model.vocabulary_sha256:
        raise InputError(
            f"{facts.path}: its tokenizer has not the tokens of {path}; take the baseline's model or record anew"
        )


def write_baseline(path: Path, baseline: Baseline) -> None:
    text = json.dumps(asdict(baseline), indent=1)
    text = re.sub(
        r"\[\s+([-+.\deE,\s]+?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text
    )  # numbers: one line
    write_whole(path, text + "\n")


def read_baseline(path: Path) -> tuple[Baseline, Reference]:
    """Raises InputError for a file that is cut off, of another version or not a baseline, and for its reference."""
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise InputError(f"{path}: no JSON, or cut off; record the baseline anew") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise InputError(f"{path}: not a baseline of lltool gate record")
    if data.get("version") != VERSION:
        raise InputError(
            f"{path}: a baseline of version {data.get('version')}, and this lltool reads version {VERSION}; "
            "take the lltool that recorded it or record it anew"
        )
    try:
        baseline: Baseline = _parse(Baseline, data, "")
    except InputError as error:
        raise InputError(f"{path}: {error}; record the baseline anew") from None
    name = path.parent / baseline.reference
    if not name.exists():
        raise InputError(f"{name}: missing; it belongs beside {path}")
    reference = open_reference(name)
    if sha256_of([name]) != baseline.reference_sha256:
        raise InputError(f"{name}: not the reference that {path} was recorded with; the two belong together")
    _check_sizes(path, baseline, reference)
    return baseline, reference


def _check_sizes(path: Path, baseline: Baseline, reference: Reference) -> None:
    windows = len(reference.windows)
    runs = [(run.text, windows) for run in baseline.runs] + [
        (run, baseline.exact.windows) for run in baseline.exact.runs
    ]
    samples = (baseline.speed.prefill, baseline.speed.decode, baseline.speed.copied, baseline.speed.computed)
    fine = (
        all(len(values) == count for run, count in runs for values in (run.losses, run.divergences, run.agreement))
        and all(len(run.answers) == len(baseline.answers) for run in baseline.runs)
        and all(
            answer.messages and answer.prompt and 0 < len(answer.tokens) == len(answer.log_probs)
            for answer in baseline.answers
        )
        and len(baseline.answers) > 1
        and len({len(values) for values in samples}) == 1
        and min(map(min, samples)) > 0
        and 2 <= baseline.exact.windows <= windows
        and len(baseline.runs) > 1  # of which the noise is known
        and baseline.exact.runs
    )
    if not fine:
        raise InputError(f"{path}: its lists have not the lengths that belong together; record the baseline anew")


def _parse(kind: Any, value: Any, where: str) -> Any:
    """`value`, as JSON gives it, as a `kind`: a dataclass, list, tuple, dict or plain type."""
    if is_dataclass(kind):
        return _parse_fields(kind, value, where)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (list, tuple) and isinstance(value, list):
        return origin(_parse(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: _parse(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is Any:
        return value
    accepted = (int, float) if kind is float else kind
    if origin is None and isinstance(value, accepted) and not isinstance(value, bool):
        return kind(value)
    name = kind.__name__ if isinstance(kind, type) and not isinstance(kind, types.GenericAlias) else str(kind)
    raise InputError(f"{where} is {json.dumps(value)[:40]}, wanted {name}")


def _parse_fields(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise InputError(f"{where} is {json.dumps(value)[:40]}, wanted an object")
    names, hints = [field.name for field in fields(kind)], get_type_hints(kind)
    for name in names:
        if name not in value:
            raise InputError(f"key {where}.{name} is missing" if where else f"key {name} is missing")
    prefix = f"{where}." if where else ""
    return kind(**{name: _parse(hints[name], value[name], prefix + name) for name in names})
