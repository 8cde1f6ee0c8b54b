"""The baseline that `lltool gate record` writes: a JSON file, and beside it the reference that it names, an .npz file.

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

from lltool.engine.text.tokenizer import Tokenizer
from lltool.eval.common.provenance import vocabulary_sha256
from lltool.eval.common.store import write_whole
from lltool.eval.divergence.reference_file import Reference, open_reference
from lltool.eval.gate.prompts import Followed, PromptAnswer
from lltool.eval.gate.runs import RunSetting, TextRun
from lltool.eval.gate.speed import Speed
from lltool.gguf.digest import sha256_of
from lltool.gguf.errors import InputError
from lltool.gguf.reader import GGUFFile
from lltool.gguf.regular_file import read_bytes

_SHAPE = ("block_count", "embedding_length", "feed_forward_length", "attention.head_count", "attention.head_count_kv")
FORMAT = "lltool gate baseline"
VERSION = 1


@dataclass(frozen=True)
class ModelFacts:
    """The file and what identifies its model: `shape` is metadata that no legitimate change of the file alters."""

    path: str
    sha256: str
    shape: dict[str, Any]
    vocabulary_sha256: str


@dataclass(frozen=True)
class TextFacts:
    path: str
    sha256: str


@dataclass(frozen=True)
class HonestRun:
    """An honest run (see judge.py) with the kernels that users run: over the text, and along each answer."""

    setting: RunSetting
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
    rounding: float  # a divergence in nats that other orders of float32 sums stay below
    runs: list[HonestRun]
    exact: Exact
    answers: list[PromptAnswer]
    speed: Speed


def describe_model(file: GGUFFile, tokenizer: Tokenizer) -> ModelFacts:
    architecture = file.metadata["general.architecture"].data
    keys = {key: file.metadata.get(f"{architecture}.{key}") for key in _SHAPE}
    shape = {key: np.asarray(value.data).tolist() for key, value in keys.items() if value is not None}
    return ModelFacts(
        str(file.path), sha256_of(file.paths), {"architecture": architecture, **shape}, vocabulary_sha256(tokenizer)
    )


def check_model(path: Path, baseline: Baseline, facts: ModelFacts) -> None:
    """Raises InputError unless the baseline in `path` is of this model; the weights may differ."""
    then, now = baseline.model.shape, facts.shape
    for key in sorted(then.keys() | now.keys()):
        if then.get(key) != now.get(key):
            raise InputError(
                f"{facts.path}: {key} is {now.get(key)}, but {then.get(key)} in {path}, a baseline of another model; "
                "name that model with -m, or record a new baseline"
            )
    if facts.vocabulary_sha256 != baseline.model.vocabulary_sha256:
        raise InputError(
            f"{facts.path}: its tokenizer has other tokens than {path}; use the baseline's model, or record a new "
            "baseline"
        )


def write_baseline(path: Path, baseline: Baseline) -> None:
    text = json.dumps(asdict(baseline), indent=1)
    text = re.sub(
        r"\[\s+([-+.\deE,\s]+?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text
    )  # a list of numbers goes on one line
    write_whole(path, text + "\n")


def read_reference_name(path: Path) -> str | None:
    """The name of the reference of the baseline in `path`, of any version; None if there is no baseline."""
    try:
        data = json.loads(read_bytes(path))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return data.get("reference") if isinstance(data, dict) and data.get("format") == FORMAT else None


def read_baseline(path: Path) -> tuple[Baseline, Reference]:
    """Reads a baseline and its reference.

    Raises InputError for a baseline that is cut off, of another version or something else, and for a bad reference.
    """
    try:
        data = json.loads(read_bytes(path))
    except (ValueError, RecursionError):
        raise InputError(f"{path}: not JSON, or cut off; record a new baseline") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise InputError(f"{path}: not a baseline of lltool gate record")
    if data.get("version") != VERSION:
        raise InputError(
            f"{path}: a baseline of version {data.get('version')}, but this lltool reads version {VERSION}; "
            "use the lltool that recorded it, or record a new baseline"
        )
    try:
        baseline: Baseline = _parse(Baseline, data, "")
    except InputError as error:
        raise InputError(f"{path}: {error}; record a new baseline") from None
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
        and len(baseline.runs) > 1  # two runs or more show the noise
        and baseline.exact.runs
    )
    if not fine:
        raise InputError(f"{path}: the lengths of its lists do not match; record a new baseline")


def _parse(kind: Any, value: Any, where: str) -> Any:
    """Converts a value from JSON to a `kind`: a dataclass, list, tuple, dict or plain type."""
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
