"""Collects the JSON results of `lltool perplexity`, `bench` and `quantize` by model file."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import hypot
from pathlib import Path
from typing import Any

from lltool.eval.bench.machine.environment import identify_machine
from lltool.eval.bench.results.rows import Interval, complete_row, speed_of
from lltool.eval.common.names import base_name, short_names
from lltool.gguf.errors import InputError
from lltool.gguf.regular_file import read_bytes
from lltool.gguf.text_file import decode_text, split_lines

Record = Mapping[str, Any]
Test = tuple[str, int]  # the workload and the number of threads, such as ("pp512", 2)


@dataclass(frozen=True)
class Scope:
    """What was evaluated and how; only figures of the same scope are comparable."""

    text: str
    method: str
    scored: int


@dataclass(frozen=True)
class Quality:
    """Perplexity and, if measured, divergence from the reference, each with its standard error."""

    perplexity: float
    error: float
    divergence: float | None = None
    divergence_error: float = 0.0
    same_top: float | None = None


@dataclass
class MeasuredFile:
    """A model file and what is known about it; sizes are in bytes, and `memory` is what the file takes in use."""

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
        """The mean over texts with its standard error; None unless it was measured on each of them."""
        found = [(q.divergence, q.divergence_error) for q in self.qualities.values() if q.divergence is not None]
        if not found or len(found) < len(self.qualities):
            return None
        return sum(mean for mean, _ in found) / len(found), hypot(*(error for _, error in found)) / len(found)


@dataclass(frozen=True)
class ResultFile:
    """A result file: what made it, on which machine, when, and with which settings."""

    file: str
    kind: str
    tool: str
    machine: str
    when: str
    command: str
    details: str


@dataclass(frozen=True)
class Runs:
    """Entries by falling size, the result files they come from, and `notes` on what was left out or looks odd."""

    entries: tuple[MeasuredFile, ...]
    runs: tuple[ResultFile, ...]
    notes: tuple[str, ...]


def read_runs(folder: Path) -> Runs:
    """Reads the folder's .json and .jsonl files, whose content tells what kind of result they hold.

    Raises InputError for a folder that does not exist or has no results.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: not a folder; wanted one with results of lltool perplexity, bench or quantize")
    records, notes = [], []
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".jsonl") and not path.name.startswith("."):
            try:
                records += [(path.name, record) for record in _parse(path)]
            except (InputError, ValueError, RecursionError) as error:
                notes.append(f"{path.name}: not JSON ({error}); left out")
    runs = gather(records, notes)
    if not runs.entries:
        raise InputError(
            f"{folder}: no results; put the output of `lltool perplexity --json` and `lltool bench -o json` there"
        )
    return runs


def gather(records: Iterable[tuple[str, Any]], notes: Iterable[str] = ()) -> Runs:
    """Combines pairs of a file's name and a result; a later result replaces an earlier one of its kind."""
    found = _Collector(list(notes))
    for file, record in records:
        found.add(file, record)
    for (file, _), remarks in found.remarks.items():
        others = f" (and {len(remarks) - 1} more measurements like it)" if len(remarks) > 1 else ""
        found.notes.append(f"{file}: {max(remarks, key=_numbers)}{others}")
    entries = sorted(found.entries, key=lambda entry: -(entry.bytes or 0))
    for entry, name in zip(entries, short_names([entry.path for entry in entries]), strict=True):
        entry.name = name
    return Runs(tuple(entries), tuple(dict.fromkeys(found.runs)), tuple(dict.fromkeys(found.notes)))


def scopes_of(entries: Sequence[MeasuredFile]) -> list[Scope]:
    """Each scope once, the one that most entries have first."""
    seen = [scope for entry in entries for scope in entry.qualities]
    return sorted(dict.fromkeys(seen), key=lambda scope: -seen.count(scope))


@dataclass
class _Collector:
    notes: list[str]
    remarks: dict[tuple[str, str], list[str]] = field(default_factory=dict)  # bench's notes, by file and subject
    entries: list[MeasuredFile] = field(default_factory=list)
    runs: list[ResultFile] = field(default_factory=list)

    def add(self, file: str, record: Any) -> None:
        keys = record.keys() if isinstance(record, dict) else set()
        for wanted, read in _READERS.items():
            if wanted <= keys:
                try:
                    read(self, file, record)
                except (KeyError, TypeError, ValueError, AttributeError, InputError) as error:
                    self.notes.append(f"{file}: a field is missing or invalid ({error}); left out")
                return
        self.notes.append(f"{file}: not a result of lltool perplexity, bench or quantize; left out")

    def entry(self, record: Record, path: str) -> MeasuredFile:
        """The entry of a model file, found or new; files are identified by digest or, where one is missing, by name."""
        digest = record.get("model_sha256")
        for entry in self.entries:
            if entry.sha256 == digest if entry.sha256 and digest else base_name(entry.path) == base_name(path):
                entry.sha256 = entry.sha256 or digest
                break
        else:
            entry = MeasuredFile(path, digest)
            self.entries.append(entry)
        size, count = record.get("model_size"), record.get("model_n_params")
        if size and count:
            entry.bits_per_weight = 8 * size / count
        entry.bytes = record.get("model_bytes") or entry.bytes or size
        return entry


def _parse(path: Path) -> list[Any]:
    text = decode_text(read_bytes(path), str(path))
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in split_lines(text) if line.strip()]
    value = json.loads(text)
    return value if isinstance(value, list) else [value]


def _read_perplexity(found: _Collector, file: str, record: Record) -> None:
    """Adds perplexity and divergence of the model and, if a model is its reference, those of the reference."""
    text = base_name(record.get("text") or record["reference"])  # a reference file may stand for its text
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
        _result_file(record, file, "divergence" if divergence else "perplexity", record.get("cpu") or "", details)
    )


def _read_bench(found: _Collector, file: str, record: Record) -> None:
    row = complete_row(record, file)
    entry = found.entry(record, row.model_filename)
    entry.speeds[row.test, row.ran["n_threads"]] = speed_of(row)
    for note in row.notes:
        found.remarks.setdefault((file, note.split(":")[0].lstrip("0123456789 ")), []).append(note)
    machine = row.machine
    found.runs.append(_result_file(record, file, "bench", identify_machine(machine) if machine else row.cpu_info or ""))


def _read_quantize(found: _Collector, file: str, record: Record) -> None:
    if record["path"] is None:
        found.notes.append(f"{file}: a dry run of lltool quantize; left out")
        return
    entry = found.entry(record, record["path"])
    entry.bytes = entry.bytes or int(record["bytes"])
    entry.bits_per_weight = float(record["bits_per_weight"])
    found.runs.append(_result_file(record, file, "quantize", ""))


def _read_memory(found: _Collector, file: str, record: Record) -> None:
    entry = found.entry(record, record["model"])
    entry.memory = record["model_bytes"] + record["cache_bytes"] + record["overhead_bytes"]


_READERS: dict[frozenset[str], Callable[[_Collector, str, Record], None]] = {
    frozenset(("perplexity", "standard_error", "model", "text")): _read_perplexity,
    frozenset(("model_filename", "n_prompt", "n_gen", "avg_ts")): _read_bench,
    frozenset(("file_type", "bits_per_weight", "tensors", "path")): _read_quantize,
    frozenset(("model", "model_bytes", "cache_bytes", "overhead_bytes")): _read_memory,
}

_DETAILS = ("precision", "threads", "batch", "n_batch", "n_ubatch", "type_k", "type_v")


def _result_file(record: Record, file: str, kind: str, machine: str, more: str = "") -> ResultFile:
    details = [f"{key} {record[key]}" for key in _DETAILS if record.get(key) is not None] + [more] * bool(more)
    tool = record.get("tool") or f"{record.get('engine') or 'llama.cpp'} {record.get('build_commit') or ''}".strip()
    when = record.get("test_time") or record.get("time") or ""
    return ResultFile(file, kind, tool, machine, when[:10], record.get("command") or "", ", ".join(details))


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]
