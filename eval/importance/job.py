"""Makes an importance file from a model and a text, saves it at intervals, and resumes an interrupted job."""

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
from lltool.engine.cpu.threads import Threads
from lltool.engine.model import Model, load_model
from lltool.engine.program import Weight
from lltool.engine.text.chat import read_chat_template
from lltool.eval.common.chat_file import messages_of, read_records
from lltool.eval.common.text import read_evaluation_text
from lltool.eval.importance.collect import (
    Collected,
    Coverage,
    collect,
    estimate_stability,
    find_rarest,
    is_observed,
    report_coverage,
)
from lltool.eval.scoring.perplexity import bos_of, cut_windows
from lltool.gguf.digest import sha256_of
from lltool.gguf.errors import InputError
from lltool.gguf.metadata import Value, ValueType, array, string, u32
from lltool.gguf.text_file import read_prompt
from lltool.gguf.whole_file import check_output, is_stream, temporary_home
from lltool.quant.importance import Importance, merge, read_importance, write_dat, write_importance

Format = Literal["gguf", "dat"]
# Metadata keys from which a job resumes.
WINDOWS, SKIPPED = "lltool.imatrix.windows", "lltool.imatrix.skipped"
LOSSES, VARIANCES = "lltool.imatrix.losses", "lltool.imatrix.variances"
STABILITY = "lltool.imatrix.stability"


@dataclass(frozen=True)
class ImportanceJob:
    """What to collect and where to write it.

    The job processes windows of `context` tokens, from number `first` on and at most `chunks` of them. It writes the
    output every `save_every` windows and keeps a copy of it every `snapshot_every` windows (0: none). `merge` are
    importance files to start with. With `until_stable`, windows are taken from all over the text, and the job ends when
    the order of the columns has this rank correlation with that from endless text (see `estimate_stability`); with
    `until_seen`, when each expert has seen so many tokens; with both, when both hold. Without `replace`, an output that
    already holds importance of another job is an error.
    """

    model: Path
    text: Path
    output: Path
    context: int = 512
    batch: int = 512
    threads: int | Threads | None = None
    precision: Precision = "int8"
    lora: tuple[tuple[Path, float], ...] = ()
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
    until_seen: int | None = None
    format: Format = "gguf"
    replace: bool = True


@dataclass(frozen=True)
class JobProgress:
    """What is collected so far of `total` windows; `stability` is the mean over matrices (None: not known yet)."""

    collected: Collected
    total: int
    stability: float | None


@dataclass(frozen=True)
class ImportanceReport:
    """The result of a job: `resumed` of the `windows` were in the output already; `skipped` are chunk numbers in the
    text. `coverage` is over all matrices that the model multiplies by."""

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
    progress: Callable[[JobProgress], None] = lambda _: None,
) -> ImportanceReport:
    """Collects importance and writes the output; an unfinished output of the same job is resumed.

    Raises InputError if the output is one of the inputs or not an importance file, for importance of another model, for
    a text that is too short, and if all windows give NaN or infinity.
    """
    _check_output(job.output, (job.model, job.text, *job.merge))
    text = read_prompt(job.text) if job.chat else read_evaluation_text(job.text)
    merged = read_merged(job.merge, job.context)
    with load_model(
        job.model,
        context=job.context,
        sequences=max(1, min(job.batch, len(text.encode())) // job.context),  # no more windows than the text has
        batch=job.batch,
        threads=job.threads,
        precision=job.precision,
        lora=job.lora,
        observe=lambda name: is_observed(name, job.process_output),
    ) as model:
        stored = {tensor.name for tensor in model.file.tensors}  # not the factors of adapters
        matrices = {name: w for name, w in model.program.weights.items() if len(w.shape) > 1 and name in stored}
        _check_entries(job, merged, matrices)
        if job.until_seen is not None and model.config.mixture is None:
            raise InputError(f"{job.model}: has no experts, so that none can be seen")
        chunks, windows = _cut(job, model, text)
        provenance = _provenance(job, model, len(windows))
        start, stability = _resume(job, provenance, len(windows), say)
        run = _RunningJob(job, merged, provenance, start or Collected(merged.sums, merged.counts), stability)
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
    """The merged importance of several files."""
    try:
        return merge([read_importance(path) for path in paths], chunk_size)
    except InputError as error:
        names = ", ".join(map(str, paths))
        raise error if str(error).startswith(tuple(map(str, paths))) else InputError(f"{names}: {error}") from None


def merge_files(paths: tuple[Path, ...], output: Path, chunk_size: int, format: Format) -> Importance:
    """Writes the merged importance of several files; with one file, this converts its format."""
    _check_output(output, paths)
    importance = read_merged(paths, chunk_size)
    write(output, importance, format)
    return importance


def write(path: Path, importance: Importance, format: Format) -> None:
    (write_dat if format == "dat" else write_importance)(path, importance)


@dataclass
class _RunningJob:
    """A job with its state; `saved` is what the output holds."""

    job: ImportanceJob
    merged: Importance
    provenance: Mapping[str, Value]
    saved: Collected
    stability: float | None  # from the last two saved states only, so that a resumed job ends at the same window

    def collect(
        self,
        model: Model,
        windows: NDArray[np.int32],
        say: Callable[[str], None],
        progress: Callable[[JobProgress], None],
    ) -> None:
        """Collects until all windows are done, or enough of them."""
        job, now = self.job, self.saved
        if self._is_enough(say, len(windows)):
            return
        try:
            for result in collect(model, windows, now, perplexity=job.perplexity, process_output=job.process_output):
                before, now = now, result
                if _passes(job.save_every, before.done, now.done):
                    self._save(now)
                if _passes(job.snapshot_every, before.done, now.done):
                    write(job.output.with_name(f"{job.output.name}.at_{now.done}"), self.importance(now), job.format)
                progress(JobProgress(now, len(windows), self.stability))
                if self.saved is now and self._is_enough(say, len(windows)):
                    break
        finally:  # also after an interrupt, so that nothing collected is lost
            if now.done > self.saved.done:
                self._save(now)

    def importance(self, collected: Collected) -> Importance:
        job, merged = self.job, self.merged
        notes = {
            **self.provenance,
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
        """Writes the output, with its stability relative to the state saved before."""
        if self.saved.done:
            estimates = estimate_stability(self.importance(self.saved), self.importance(now)).values()
            self.stability = fmean(estimates) if estimates else None
        if now.done > len(now.skipped):
            write(self.job.output, self.importance(now), self.job.format)
        self.saved = now

    def _is_enough(self, say: Callable[[str], None], total: int) -> bool:
        """Whether what the job waits for has come; it waits for all windows if it was told nothing else."""
        wanted, found = self.job.until_stable, self.stability
        least, rarest = self.job.until_seen, find_rarest(self.saved.counts)
        reasons = []
        if wanted is not None:
            if found is None or found < wanted:
                return False
            reasons.append(f"the ranking is stable after {self.saved.done} of {total} windows: {found:.4f}")
        if least is not None:
            if rarest is None or rarest[2] < least:
                return False
            reasons.append(f"each expert has seen {rarest[2]} tokens after {self.saved.done} of {total} windows")
        for reason in reasons:
            say(reason)
        return bool(reasons)


def _is_spread(job: ImportanceJob) -> bool:
    """Whether windows are taken from all over the text, because the job may end before it."""
    return job.until_stable is not None or job.until_seen is not None


def _passes(every: int, before: int, now: int) -> bool:
    """Whether a multiple of `every` (0: never) is above `before` and not above `now`."""
    return every > 0 and now // every > before // every


def _provenance(job: ImportanceJob, model: Model, total: int) -> dict[str, Value]:
    """Metadata of what the output is made from; a job resumes only if all of it is the same."""
    settings = {
        "context": job.context,
        "from_chunk": job.first,
        "parse_special": job.parse_special,
        "chat": job.chat,
        "process_output": job.process_output,
        "perplexity": job.perplexity,
        "precision": job.precision,
        "spread_over": total if _is_spread(job) else None,
        "merged_sha256": [sha256_of([path]) for path in job.merge],
        **({"adapters": [(each.digest, each.scale) for each in model.adapters]} if model.adapters else {}),
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
    job: ImportanceJob, provenance: Mapping[str, Value], total: int, say: Callable[[str], None]
) -> tuple[Collected | None, float | None]:
    """What the output holds of this job, and its stability; None if the job has to start over."""
    if not job.output.exists() or is_stream(job.output):
        return None, None
    found = read_importance(job.output)  # refuses other files, so that they are not overwritten
    notes = found.notes
    changed = [key.rpartition(".")[2] for key, value in provenance.items() if notes.get(key) != value]
    if changed or job.format != "gguf" or not {WINDOWS, SKIPPED, LOSSES, VARIANCES} <= notes.keys():
        if not job.replace:
            raise InputError(
                f"{job.output}: exists, but is not from this job; name another file with -o or use --force"
            )
        say(f"{job.output}: starting over" + (f", because of another {', '.join(changed)}" if changed else ""))
        return None, None
    done = int(notes[WINDOWS].data)
    if done > total:
        if not job.replace:
            raise InputError(
                f"{job.output}: has {done} windows, wanted {total}; name another file with -o or use --force"
            )
        say(f"{job.output}: starting over, because it has {done} windows, wanted {total}")
        return None, None
    say(f"{job.output}: resuming after window {done} of {total}")
    skipped, losses, variances = (tuple(np.asarray(notes[key].data).tolist()) for key in (SKIPPED, LOSSES, VARIANCES))
    stability = float(notes[STABILITY].data) if STABILITY in notes else None
    return Collected(found.sums, found.counts, done, skipped, losses, variances), stability


def _cut(job: ImportanceJob, model: Model, text: str) -> tuple[NDArray[np.integer], NDArray[np.int32]]:
    """The numbers of the windows in the text and the windows themselves, in the order in which they are processed."""
    ids = _render_chats(job, model, text) if job.chat else model.tokenizer.encode(text, parse_special=job.parse_special)
    windows = cut_windows(ids, job.context, bos_of(model), str(job.text))
    if job.first >= len(windows):
        raise InputError(f"{job.text}: has {len(windows)} chunks of {job.context} tokens, wanted more than {job.first}")
    chunks = np.arange(job.first, len(windows))[: job.chunks]
    if _is_spread(job):
        # Texts change topics, so only windows from all over represent those that will not be processed.
        chunks = np.random.default_rng(0).permutation(chunks)
    return chunks, windows[chunks]


def _render_chats(job: ImportanceJob, model: Model, text: str) -> list[int]:
    """The tokens of conversations, one per line: a JSON list of messages, or an object with such a list "messages"."""
    template = read_chat_template(model.file, model.tokenizer)
    ids: list[int] = []
    for place, record in read_records(text, str(job.text)):
        messages = messages_of(record)
        if messages is None:
            raise InputError(f'{place}: wanted a list of messages with roles, or {{"messages": [...]}}')
        try:
            ids += template.encode(messages, add_generation_prompt=False)
        except InputError as error:
            raise InputError(f"{place}: {error}") from None
    return ids


def _check_output(output: Path, inputs: tuple[Path, ...]) -> None:
    check_output(output, inputs)
    if is_stream(output) and temporary_home(output) is not None:
        raise InputError(f"{output}: a pipe or device, wanted a regular file, because it is rewritten at intervals")


def _check_entries(job: ImportanceJob, merged: Importance, matrices: Mapping[str, Weight]) -> None:
    """Raises InputError unless the importance to start with is of this model."""
    names = ", ".join(map(str, job.merge))
    for name, sums in merged.sums.items():
        if name not in matrices:
            raise InputError(f"{names}: {name}: {job.model} has no such matrix; is the importance of another model?")
        shape = matrices[name].shape
        wanted = shape[-1] * (shape[0] if len(shape) > 2 else 1)
        if sums.size != wanted:
            raise InputError(f"{names}: {name}: has {sums.size} columns, but {job.model} has {wanted}")
