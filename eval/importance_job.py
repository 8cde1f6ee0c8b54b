"""An importance file from a model and a text: written as it grows, and gone on with where it was left."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lltool import __version__
from lltool.engine.batch import Precision
from lltool.engine.chat import ChatTemplate
from lltool.engine.model import Model, load_model
from lltool.engine.program import Weight
from lltool.engine.threads import Threads
from lltool.eval.importance import (
    Collected,
    Coverage,
    collect,
    estimate_stability,
    is_observed,
    report_coverage,
)
from lltool.eval.perplexity import bos_of, cut_windows
from lltool.eval.text import read_text
from lltool.gguf.digest import sha256_of
from lltool.gguf.errors import InputError
from lltool.gguf.metadata import Value, ValueType, array, string, u32
from lltool.quant.importance import Importance, merge, read_importance, write_dat, write_importance

Format = Literal["gguf", "dat"]
# Metadata of an output that can be gone on with.
WINDOWS, SKIPPED = "lltool.imatrix.windows", "lltool.imatrix.skipped"
LOSSES, VARIANCES = "lltool.imatrix.losses", "lltool.imatrix.variances"
STABILITY = "lltool.imatrix.stability"


@dataclass(frozen=True)
class ImportanceJob:
    """What to collect and where to write it.

    Windows of `context` tokens from number `first` on, at most `chunks` of them; the output is written every
    `save_every` windows, and copies of it are kept every `snapshot_every` (0: none). `merge` are importance files to
    begin with. With `until_stable`, windows are taken from all over the text, and it ends when the order of the columns
    is as near to that of endless text (a rank correlation; see `estimate_stability`).
    """

    model: Path
    text: Path
    output: Path
    context: int = 512
    batch: int = 512
    threads: int | Threads | None = None
    precision: Precision = "int8"
    first: int = 0
    chunks: int | None = None
    parse_special: bool = False
    chat: bool = False
    process_output: bool = False
    perplexity: bool = True
    merge: tuple[Path, ...] = ()
    save_every: int = 10
    snapshot_every: int = 0
    until_stable: float | None = None
    format: Format = "gguf"


@dataclass(frozen=True)
class Progress:
    """`total` windows are to be done; `stability` is the mean of the matrices' (None: not known yet)."""

    collected: Collected
    total: int
    stability: float | None


@dataclass(frozen=True)
class ImportanceReport:
    """`resumed` of `windows` were in the output already; those `skipped` are chunks of the text. `coverage` is over all
    matrices that the model multiplies with."""

    importance: Importance
    collected: Collected
    windows: int
    resumed: int
    skipped: tuple[int, ...]
    stability: float | None
    coverage: Coverage


def collect_importance(
    job: ImportanceJob,
    *,
    say: Callable[[str], None] = lambda _: None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> ImportanceReport:
    """Collects and writes; an output of the same job that is not finished is gone on with.

    Raises InputError when the output is one of the inputs or no importance file, for importance of another model, a
    text that is too short, and when no window gives numbers.
    """
    _check_output(job.output, (job.model, job.text, *job.merge))
    text = read_text(job.text)
    merged = read_merged(job.merge, job.context)
    with load_model(
        job.model,
        context=job.context,
        sequences=max(1, min(job.batch, len(text.encode())) // job.context),  # no more windows than the text has
        batch=job.batch,
        threads=job.threads,
        precision=job.precision,
        observe=lambda name: is_observed(name, job.process_output),
    ) as model:
        matrices = {name: weight for name, weight in model.program.weights.items() if len(weight.shape) > 1}
        _check_entries(job, merged, matrices)
        chunks, windows = _cut(job, model, text)
        made_of = _describe(job, model, len(windows))
        start, stability = _resume(job, made_of, len(windows), say)
        run = _Run(job, merged, made_of, start or Collected(merged.sums, merged.counts), stability)
        resumed = run.saved.done
        run.collect(model, windows, say, progress)
    done = run.saved
    if done.done == len(done.skipped):
        raise InputError(f"{job.model}: all {done.done} windows of {job.text} gave NaN or infinity")
    importance = run.importance(done)
    skipped = tuple(sorted(int(chunks[window]) for window in done.skipped))
    coverage = report_coverage(importance, matrices)
    return ImportanceReport(importance, done, len(windows), resumed, skipped, run.stability, coverage)


def read_merged(paths: tuple[Path, ...], chunk_size: int) -> Importance:
    """The importance of several files together."""
    try:
        return merge([read_importance(path) for path in paths], chunk_size)
    except InputError as error:
        names = ", ".join(map(str, paths))
        raise error if str(error).startswith(tuple(map(str, paths))) else InputError(f"{names}: {error}") from None


def merge_files(paths: tuple[Path, ...], output: Path, chunk_size: int, format: Format) -> Importance:
    """Writes the importance of several files together; of one, it changes the format."""
    _check_output(output, paths)
    importance = read_merged(paths, chunk_size)
    write(output, importance, format)
    return importance


def write(path: Path, importance: Importance, format: Format) -> None:
    (write_dat if format == "dat" else write_importance)(path, importance)


@dataclass
class _Run:
    """The state of a job: what is `saved` in the output."""

    job: ImportanceJob
    merged: Importance
    made_of: Mapping[str, Value]
    saved: Collected
    stability: float | None  # compares what is saved with what was saved before, so that going on comes to the same end

    def collect(
        self, model: Model, windows: NDArray[np.int32], say: Callable[[str], None], progress: Callable[[Progress], None]
    ) -> None:
        """Collects until all windows are done or the ranking has settled."""
        job, now = self.job, self.saved
        if self._has_settled(say, len(windows)):
            return
        try:
            for result in collect(model, windows, now, perplexity=job.perplexity, process_output=job.process_output):
                before, now = now, result
                if _passes(job.save_every, before.done, now.done):
                    self._save(now)
                if _passes(job.snapshot_every, before.done, now.done):
                    write(job.output.with_name(f"{job.output.name}.at_{now.done}"), self.importance(now), job.format)
                progress(Progress(now, len(windows), self.stability))
                if self.saved is now and self._has_settled(say, len(windows)):
                    break
        finally:  # interrupted, too, and what was collected is kept
            if now.done > self.saved.done:
                self._save(now)

    def importance(self, collected: Collected) -> Importance:
        job, merged = self.job, self.merged
        notes = {
            **self.made_of,
            WINDOWS: u32(collected.done),
            SKIPPED: array(ValueType.UINT32, np.array(collected.skipped, np.uint32)),
            LOSSES: array(ValueType.FLOAT64, np.array(collected.losses, np.float64)),
            VARIANCES: array(ValueType.FLOAT64, np.array(collected.variances, np.float64)),
            **({} if self.stability is None else {STABILITY: Value(ValueType.FLOAT64, self.stability)}),
        }
        chunks = merged.chunk_count + collected.done - len(collected.skipped)
        datasets = (*merged.datasets, str(job.text))
        return Importance(collected.sums, collected.counts, chunks, job.context, datasets, notes)

    def _save(self, now: Collected) -> None:
        """Writes the output, with the stability against what was there before."""
        if self.saved.done:
            estimates = estimate_stability(self.importance(self.saved), self.importance(now)).values()
            self.stability = fmean(estimates) if estimates else None
        if now.done > len(now.skipped):
            write(self.job.output, self.importance(now), self.job.format)
        self.saved = now

    def _has_settled(self, say: Callable[[str], None], total: int) -> bool:
        wanted, found = self.job.until_stable, self.stability
        if wanted is None or found is None or found < wanted:
            return False
        say(f"the ranking has settled after {self.saved.done} of {total} windows: {found:.4f}")
        return True


def _passes(every: int, before: int, now: int) -> bool:
    """Whether a multiple of `every` (0: never) lies behind `before` and not behind `now`."""
    return every > 0 and now // every > before // every


def _describe(job: ImportanceJob, model: Model, total: int) -> dict[str, Value]:
    """What the output is made of; work goes on only where all of it is the same."""
    settings = {
        "context": job.context,
        "from_chunk": job.first,
        "parse_special": job.parse_special,
        "chat": job.chat,
        "process_output": job.process_output,
        "perplexity": job.perplexity,
        "precision": job.precision,
        "spread_over": None if job.until_stable is None else total,
        "merged_sha256": [sha256_of([path]) for path in job.merge],
    }
    return {
        "lltool.version": string(__version__),
        "lltool.imatrix.model": string(job.model.name),
        "lltool.imatrix.model_sha256": string(sha256_of(model.file.paths)),
        "lltool.imatrix.text": string(job.text.name),
        "lltool.imatrix.text_sha256": string(sha256_of([job.text])),
        "lltool.imatrix.settings": string(json.dumps(settings)),
    }


def _resume(
    job: ImportanceJob, made_of: Mapping[str, Value], total: int, say: Callable[[str], None]
) -> tuple[Collected | None, float | None]:
    """What the output holds of this job, and its stability."""
    if not job.output.exists():
        return None, None
    found = read_importance(job.output)  # what is no importance file is not overwritten
    notes = found.notes
    other = [key.rpartition(".")[2] for key, value in made_of.items() if notes.get(key) != value]
    if other or job.format != "gguf" or not {WINDOWS, SKIPPED, LOSSES, VARIANCES} <= notes.keys():
        say(f"{job.output}: made anew" + (f", of another {', '.join(other)}" if other else ""))
        return None, None
    done = int(notes[WINDOWS].data)
    if done > total:
        say(f"{job.output}: made anew: it has {done} windows, wanted {total}")
        return None, None
    say(f"{job.output}: going on behind window {done} of {total}")
    skipped, losses, variances = (tuple(np.asarray(notes[key].data).tolist()) for key in (SKIPPED, LOSSES, VARIANCES))
    stability = float(notes[STABILITY].data) if STABILITY in notes else None
    return Collected(found.sums, found.counts, done, skipped, losses, variances), stability


def _cut(job: ImportanceJob, model: Model, text: str) -> tuple[NDArray[np.integer], NDArray[np.int32]]:
    """The windows in the order in which they are taken, and their numbers in the text."""
    ids = _render_chats(job, model, text) if job.chat else model.tokenizer.encode(text, parse_special=job.parse_special)
    windows = cut_windows(ids, job.context, bos_of(model), str(job.text))
    if job.first >= len(windows):
        raise InputError(f"{job.text}: has {len(windows)} chunks of {job.context} tokens, wanted more than {job.first}")
    chunks = np.arange(job.first, len(windows))[: job.chunks]
    if job.until_stable is not None:
        # Texts go from topic to topic: only windows from all over speak for those that will not be taken.
        chunks = np.random.default_rng(0).permutation(chunks)
    return chunks, windows[chunks]


def _render_chats(job: ImportanceJob, model: Model, text: str) -> list[int]:
    """The tokens of conversations, one a line: a JSON list of messages, or an object that has one as "messages"."""
    template = ChatTemplate.from_gguf(model.file.metadata, model.tokenizer)
    ids: list[int] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            parsed = json.loads(line)
            messages = parsed.get("messages") if isinstance(parsed, dict) else parsed
            if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
                raise InputError('wanted a list of messages, or {"messages": [...]}')
            ids += template.encode(messages, add_generation_prompt=False)
        except (InputError, json.JSONDecodeError, RecursionError) as error:
            raise InputError(f"{job.text}: line {number}: {error}") from None
    return ids


def _check_output(output: Path, inputs: tuple[Path, ...]) -> None:
    if output.is_dir() or not output.parent.is_dir():
        raise InputError(f"{output}: wanted a file in a folder that exists")
    for path in inputs:
        if path.exists() and output.exists() and path.samefile(output):
            raise InputError(f"{output}: is both read and written; give another output")


def _check_entries(job: ImportanceJob, merged: Importance, matrices: Mapping[str, Weight]) -> None:
    """Importance to begin with must be of this model."""
    names = ", ".join(map(str, job.merge))
    for name, sums in merged.sums.items():
        if name not in matrices:
            raise InputError(f"{names}: {name}: {job.model} has no such matrix; importance of another model?")
        shape = matrices[name].shape
        wanted = shape[-1] * (shape[0] if len(shape) > 2 else 1)
        if sums.size != wanted:
            raise InputError(f"{names}: {name}: has {sums.size} columns, {job.model} {wanted}; of another model?")
