"""Measures several files of one model in the same way: quality on texts, speed in turns, memory; results are cached."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from lltool.engine.batch import PAGE
from lltool.engine.cpu.threads import default_threads
from lltool.engine.cpu.tuning import cpu_name
from lltool.engine.memory import available_memory, page_bytes
from lltool.engine.model import Model, load_model
from lltool.engine.state import StateLayout
from lltool.eval.bench.machine.footprint import measure_footprint
from lltool.eval.bench.run.measure import measure_points
from lltool.eval.bench.run.plan import GridPoint, grid, resolve, workloads
from lltool.eval.bench.run.schedule import Effort
from lltool.eval.bench.settings import Settings, Workload
from lltool.eval.common.steps import Steps
from lltool.eval.common.store import Store
from lltool.eval.common.text import SAMPLE_TEXT, read_evaluation_text
from lltool.eval.divergence.comparison import to_record
from lltool.eval.divergence.divergence import divergences
from lltool.eval.scoring.perplexity import perplexity
from lltool.eval.scoring.perplexity_report import to_records
from lltool.eval.selection.runs import Record
from lltool.gguf.describe import describe_file
from lltool.gguf.digest import sha256_of
from lltool.gguf.reader import GGUFFile

PROBE_CONTEXT = 512  # tokens; a process's memory besides file and cache does not grow with the context


@dataclass(frozen=True)
class Questions:
    """What to measure: quality on `texts` in windows of `window` tokens (the first `chunks`), speed, and memory."""

    texts: Sequence[Path] = (SAMPLE_TEXT,)
    window: int = 512
    chunks: int | None = None
    threads: Sequence[int] = ()  # empty: one per core
    prompt: int = 512
    generation: int = 64
    repetitions: int = 5
    context: int | None = None  # tokens for which memory is measured; None: it is not

    def steps(self, files: int) -> int:
        """The number of steps in a survey of `files` files."""
        return files * (len(self.texts) + (self.context is not None)) + max(1, len(self.threads))


def survey(
    store: Store, files: Sequence[Path], reference: Path | None, questions: Questions, steps: Steps | None = None
) -> list[tuple[str, Record]]:
    """Measures what the store lacks; returns all results, each with the name of its file in the store, for `gather`.

    Results have the form of `lltool perplexity --json` and `lltool bench -o json`. Divergence is measured from
    `reference`, which may be one of the files. Raises InputError as `perplexity`, `divergence` and `measure_points` do.
    """
    steps = steps or Steps(None, questions.steps(len(files)))
    records: list[tuple[str, Record]] = []
    for text in questions.texts:
        records.extend(_measure_quality(store, files, reference, text, questions, steps))
    if questions.context is not None:
        for path in files:
            steps.begin(f"memory of {path.name}")
            threads = max(questions.threads or (default_threads(),))
            recipe = {"model": _stamp(path), "context": questions.context, "threads": threads}
            measure_file = partial(_measure_memory, path, questions.context, threads)
            name = f"memory-{path.stem}.json"
            records.append((name, store.compute(name, recipe, measure_file)))
    for name, rows in _measure_speed(store, files, questions, steps):
        records += [(name, row) for row in rows]
    return records


def _measure_quality(
    store: Store, files: Sequence[Path], reference: Path | None, text: Path, questions: Questions, steps: Steps
) -> Iterator[tuple[str, Record]]:
    """Records of divergence, which include the reference's perplexity; without a reference, records of perplexity."""
    others = [path for path in files if path != reference]
    if reference is None or not others:
        groups = [[path] for path in files]
        measure_files: Callable[[Sequence[Path]], list[Record]] = partial(_perplexities, text, questions, steps)
    else:
        groups = _fitting(others, reference)
        measure_files = partial(_divergences, reference, text, questions, steps)
    extra = len(files) - sum(map(len, groups))  # 1 for the reference, which is measured with the first group
    for group in groups:
        steps.begin(f"{', '.join(path.name for path in group)} on {text.name}", len(group) + extra)
        extra = 0
        paths = {f"quality-{path.stem}-{text.stem}.json": path for path in group}
        recipe = {
            "reference": _stamp(reference) if reference else None,
            "text": sha256_of([text]),
            "window": questions.window,
            "chunks": questions.chunks,
        }
        recipes = {name: {**recipe, "model": _stamp(path)} for name, path in paths.items()}

        def measured(names: Sequence[str], paths: Mapping[str, Path] = paths) -> Mapping[str, Record]:
            return dict(zip(names, measure_files([paths[name] for name in names]), strict=True))

        yield from store.compute_all(recipes, measured).items()


def _perplexities(text: Path, questions: Questions, steps: Steps, paths: Sequence[Path]) -> list[Record]:
    """Records of perplexity."""
    records: list[Record] = []
    for path in paths:
        with load_model(path, context=questions.window, deterministic=True) as model:
            start = perf_counter()
            found = perplexity(model, read_evaluation_text(text), **_windows(text, questions, steps))
            records += to_records({text: found}, model, [perf_counter() - start])
    return records


def _divergences(
    reference: Path, text: Path, questions: Questions, steps: Steps, paths: Sequence[Path]
) -> list[Record]:
    """Records of divergence; all models read the text in lockstep, so that the reference reads it only once."""
    with ExitStack() as stack:
        opened = (load_model(p, context=questions.window, deterministic=True) for p in (reference, *paths))
        base, *models = (stack.enter_context(model) for model in opened)
        found = divergences(base, models, read_evaluation_text(text), **_windows(text, questions, steps))
        return [to_record(result, base, model, text) for result, model in zip(found, models, strict=True)]


def _windows(text: Path, questions: Questions, steps: Steps) -> dict[str, Any]:
    return {"context": questions.window, "chunks": questions.chunks, "name": str(text), "progress": steps.inside}


def _fitting(paths: Sequence[Path], *always: Path) -> list[list[Path]]:
    """All files in one group if they and `always` fit in memory together; else each file in its own."""
    free, needed = available_memory(), sum(path.stat().st_size for path in (*paths, *always))
    return [list(paths)] if free is None or needed < 0.8 * free else [[path] for path in paths]


def _measure_memory(path: Path, context: int, threads: int) -> Record:
    """The memory that a file takes in use: itself, its cache of `context` tokens, and a process's measured overhead."""
    workload = Workload(min(context, PROBE_CONTEXT), 0)
    with load_model(path, context=workload.prompt) as model:
        facts, cache, probed = _facts(model.file), cache_bytes(model, context), cache_bytes(model, workload.prompt)
    private = measure_footprint(resolve(Settings(path, threads=threads)), workload).private or 0
    return {
        **facts,
        "context": context,
        "cache_bytes": cache,
        "overhead_bytes": max(private - probed, 0),
    }


def cache_bytes(model: Model, context: int) -> int:
    """Bytes of keys and values for one sequence of `context` tokens, in whole pages."""
    return -(-context // PAGE) * page_bytes(StateLayout.of(model.program))


def _measure_speed(
    store: Store, files: Sequence[Path], questions: Questions, steps: Steps
) -> Iterator[tuple[str, list[Record]]]:
    """Speeds of all files at each number of threads, timed in turns; or file by file if memory cannot hold them all."""
    groups = _fitting(files)
    runs = workloads([questions.prompt], [questions.generation])
    for threads in questions.threads or (default_threads(),):
        steps.begin(f"speed with {threads} threads")
        for group in groups:
            name = f"speed-{threads}{f'-{group[0].stem}' if len(groups) > 1 else ''}.json"
            recipe = {
                "models": [_stamp(path) for path in group],
                "tests": [str(run) for run in runs],
                "threads": threads,
                "repetitions": questions.repetitions,
                "cpu": cpu_name(),
            }
            points = grid(group, runs, threads=[threads])
            yield name, store.compute(name, recipe, partial(_time, points, questions.repetitions, steps))


def _time(points: Sequence[GridPoint], repetitions: int, steps: Steps) -> list[Record]:
    """Rows for comparison with each other: their intervals leave out the machine's drift between runs."""
    found = measure_points(points, Effort(repetitions), memory=False, drift=0.0, progress=steps.inside)
    return [row.columns() for row in found]


def _facts(file: GGUFFile) -> Record:
    facts = describe_file(file)
    return {
        "model": str(file.path),
        "model_sha256": sha256_of(file.paths),
        "model_bytes": facts.file_bytes,
        "model_size": facts.tensor_bytes,
        "model_n_params": facts.parameters,
    }


def _stamp(path: Path) -> list[int]:
    """Size and modification time, which distinguish a file from a later one of the same name without reading it."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]
