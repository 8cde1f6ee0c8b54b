"""Results put together by model file: what `lltool perplexity`, `bench` and `quantize` say of it in JSON."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import hypot
from pathlib import Path, PurePath
from typing import Any

from lltool.eval.bench.environment import identify_machine
from lltool.eval.bench.rows import Interval, complete_row, speed_of
from lltool.eval.bench.tables import test_name
from lltool.gguf.errors import InputError

Record = Mapping[str, Any]
Test = tuple[str, int]  # as in ("pp512", 2): the workload and the number of threads


@dataclass(frozen=True)
class Scope:
    """What was evaluated and how: figures of one scope compare."""

    text: str
    method: str
    scored: int


@dataclass(frozen=True)
class Quality:
    """Perplexity, and divergence from the reference where that was measured, each with its standard error."""

    perplexity: float
    error: float
    divergence: float | None = None
    divergence_error: float = 0.0
    same_top: float | None = None


@dataclass
class Entry:
    """A model file and what is known of it; sizes in bytes, `memory` is what it takes in use."""

    path: str
    sha256: str | None = None
    name: str = ""
    bytes: int | None = None
    bits_per_weight: float | None = None
    memory: int | None = None
    qualities: dict[Scope, Quality] = field(default_factory=dict)
    speeds: dict[Test, Interval] = field(default_factory=dict)

    @property
    def divergence(self) -> tuple[float, float] | None:
        """The mean over texts with its error; None where it was not measured on each of them."""
        found = [(q.divergence, q.divergence_error) for q in self.qualities.values() if q.divergence is not None]
        if not found or len(found) < len(self.qualities):
            return None
        return sum(mean for mean, _ in found) / len(found), hypot(*(error for _, error in found)) / len(found)


@dataclass(frozen=True)
class Run:
    """A result file: what made it, on which machine, and what else it says about itself."""

    file: str
    kind: str
    tool: str
    machine: str
    when: str
    command: str
    details: str


@dataclass(frozen=True)
class Runs:
    """Entries by falling size, the runs they come from, and `notes` on what was left out or looks odd."""

    entries: tuple[Entry, ...]
    runs: tuple[Run, ...]
    notes: tuple[str, ...]


def read_runs(folder: Path) -> Runs:
    """Of the folder's .json and .jsonl files; what a file is, its content says.

    Raises InputError for a folder that is not there or has no result.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: not a folder; wanted one with results of lltool perplexity, bench or quantize")
    records, notes = [], []
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".jsonl") and not path.name.startswith("."):
            try:
                records += [(path.name, record) for record in _parse(path)]
            except (ValueError, RecursionError) as error:
                notes.append(f"{path.name}: not JSON ({error}); left out")
    runs = gather(records, notes)
    if not runs.entries:
        raise InputError(
            f"{folder}: no results; put the output of `lltool perplexity --json` and `lltool bench -o json` there"
        )
    return runs


def gather(records: Iterable[tuple[str, Any]], notes: Iterable[str] = ()) -> Runs:
    """Of pairs of a file's name and what it holds; a later result takes the place of an earlier one of its kind."""
    found = _Found(list(notes))
    for file, record in records:
        found.add(file, record)
    for (file, _), remarks in found.remarks.items():
        others = f" (and {len(remarks) - 1} more measurements like it)" if len(remarks) > 1 else ""
        found.notes.append(f"{file}: {max(remarks, key=_numbers)}{others}")
    entries = sorted(found.entries, key=lambda entry: -(entry.bytes or 0))
    for entry, name in zip(entries, short_names([entry.path for entry in entries]), strict=True):
        entry.name = name
    return Runs(tuple(entries), tuple(dict.fromkeys(found.runs)), tuple(dict.fromkeys(found.notes)))


def scopes_of(entries: Sequence[Entry]) -> list[Scope]:
    """Each scope once, those that most entries have first."""
    seen = [scope for entry in entries for scope in entry.qualities]
    return sorted(dict.fromkeys(seen), key=lambda scope: -seen.count(scope))


def short_names(paths: Sequence[str]) -> list[str]:
    """What differs in the names of files: Q4_0 and Q8_0 of model-Q4_0.gguf and model-Q8_0.gguf."""
    stems = [_base(path).removesuffix(".gguf") for path in paths]
    first, last = min(stems, default=""), max(stems, default="")  # what these two share, all share
    shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    cut = max(first.rfind(mark, 0, shared) for mark in "-.") + 1
    for names in ([stem[cut:] for stem in stems], stems):
        if all(names) and len(set(names)) == len(names):
            return names
    return list(paths)


@dataclass
class _Found:
    notes: list[str]
    remarks: dict[tuple[str, str], list[str]] = field(default_factory=dict)  # of bench, by file and what they are about
    entries: list[Entry] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)

    def add(self, file: str, record: Any) -> None:
        keys = record.keys() if isinstance(record, dict) else set()
        for wanted, read in _READERS.items():
            if wanted <= keys:
                try:
                    read(self, file, record)
                except (KeyError, TypeError, ValueError, AttributeError, InputError) as error:
                    self.notes.append(f"{file}: a result with a field missing or odd ({error}); left out")
                return
        self.notes.append(f"{file}: not a result of lltool perplexity, bench or quantize; left out")

    def entry(self, record: Record, path: str) -> Entry:
        """The file's; files are known by their digest, and by name where a result does not tell it."""
        digest = record.get("model_sha256")
        for entry in self.entries:
            if entry.sha256 == digest if entry.sha256 and digest else _base(entry.path) == _base(path):
                entry.sha256 = entry.sha256 or digest
                break
        else:
            entry = Entry(path, digest)
            self.entries.append(entry)
        size, count = record.get("model_size"), record.get("model_n_params")
        if size and count:
            entry.bits_per_weight = 8 * size / count
        entry.bytes = record.get("model_bytes") or entry.bytes or size
        return entry


def _parse(path: Path) -> list[Any]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    value = json.loads(text)
    return value if isinstance(value, list) else [value]


def _read_perplexity(found: _Found, file: str, record: Record) -> None:
    """With divergence also what it says of the reference, which diverges from itself by nothing."""
    text = _base(record.get("text") or record["reference"])  # a reference file has a text of its own
    scope = Scope(text, record["method"], int(record["scored_tokens"]))
    quality = Quality(float(record["perplexity"]), float(record["standard_error"]))
    entry = found.entry(record, record["model"])
    if divergence := record.get("divergence"):
        mean, error, top = (float(divergence[name]) for name in ("mean", "error", "same_top"))
        quality = replace(quality, divergence=mean, divergence_error=error, same_top=top)
        if record["reference_kind"] == "model":
            base = Quality(float(record["base_perplexity"]), float(record["base_standard_error"]), 0.0, 0.0, 1.0)
            found.entry({"model_sha256": record["reference_sha256"]}, record["reference"]).qualities[scope] = base
    elif previous := entry.qualities.get(scope):
        quality = replace(previous, perplexity=quality.perplexity, error=quality.error)
    entry.qualities[scope] = quality
    details = f"text {text} sha256 {str(record.get('text_sha256'))[:12]}"
    found.runs.append(
        _run(record, file, "divergence" if divergence else "perplexity", record.get("cpu") or "", details)
    )


def _read_bench(found: _Found, file: str, record: Record) -> None:
    row = complete_row(record, file)
    entry = found.entry(record, row["model_filename"])
    entry.speeds[test_name(row), row["n_threads"]] = speed_of(row)
    for note in row["notes"]:
        found.remarks.setdefault((file, note.split(":")[0].lstrip("0123456789 ")), []).append(note)
    machine = row["machine"]
    found.runs.append(_run(record, file, "bench", identify_machine(machine) if machine else row["cpu_info"] or ""))


def _read_quantize(found: _Found, file: str, record: Record) -> None:
    if record["path"] is None:
        found.notes.append(f"{file}: a dry run of lltool quantize; left out")
        return
    entry = found.entry(record, record["path"])
    entry.bytes = entry.bytes or int(record["bytes"])
    entry.bits_per_weight = float(record["bits_per_weight"])
    found.runs.append(_run(record, file, "quantize", ""))


def _read_memory(found: _Found, file: str, record: Record) -> None:
    entry = found.entry(record, record["model"])
    entry.memory = record["model_bytes"] + record["cache_bytes"] + record["overhead_bytes"]


_READERS: dict[frozenset[str], Callable[[_Found, str, Record], None]] = {
    frozenset(("perplexity", "standard_error", "model", "text")): _read_perplexity,
    frozenset(("model_filename", "n_prompt", "n_gen", "avg_ts")): _read_bench,
    frozenset(("file_type", "bits_per_weight", "tensors", "path")): _read_quantize,
    frozenset(("model", "model_bytes", "cache_bytes", "overhead_bytes")): _read_memory,
}

_DETAILS = ("precision", "threads", "batch", "n_batch", "n_ubatch", "type_k", "type_v")


def _run(record: Record, file: str, kind: str, machine: str, more: str = "") -> Run:
    details = [f"{key} {record[key]}" for key in _DETAILS if record.get(key) is not None] + [more] * bool(more)
    tool = record.get("tool") or f"{record.get('engine') or 'llama.cpp'} {record.get('build_commit') or ''}".strip()
    when = record.get("test_time") or record.get("time") or ""
    return Run(file, kind, tool, machine, when[:10], record.get("command") or "", ", ".join(details))


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def _base(path: str) -> str:
    return PurePath(path.replace("\\", "/")).name
