"""Measures several files of one model alike: quality on texts, speed in turns, memory. What was measured is kept."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from lltool.engine.batch import PAGE
from lltool.engine.config import ModelConfig
from lltool.engine.model import load_model
from lltool.engine.threads import default_threads
from lltool.engine.tuning import cpu_name
from lltool.eval.bench.footprint import measure_footprint
from lltool.eval.bench.measure import measure
from lltool.eval.bench.plan import Point, Settings, Workload, grid, resolve, workloads
from lltool.eval.bench.record import Row, to_row
from lltool.eval.bench.schedule import Effort
from lltool.eval.comparison import to_record
from lltool.eval.divergence import divergences
from lltool.eval.perplexity import perplexity
from lltool.eval.perplexity_report import to_records
from lltool.eval.runs import Record
from lltool.eval.steps import Steps
from lltool.eval.store import Store
from lltool.eval.text import SAMPLE_TEXT, read_text
from lltool.gguf.describe import describe
from lltool.gguf.digest import sha256_of
from lltool.gguf.reader import GGUFFile

PROBE_CONTEXT = 512  # tokens: what a process holds beside file and cache does not grow with the context


@dataclass(frozen=True)
class Questions:
    """What to measure: perplexity on `texts` in windows of `window` tokens (the first `chunks`), speed of workloads."""

    texts: Sequence[Path] = (SAMPLE_TEXT,)
    window: int = 512
    chunks: int | None = None
    threads: Sequence[int] = ()  # none: one a core
    prompt: int = 512
    generation: int = 64
    repetitions: int = 5
    context: int | None = None  # that memory is measured for

    def steps(self, files: int) -> int:
        """How many a survey of so many files takes."""
        return files * (len(self.texts) + (self.context is not None)) + max(1, len(self.threads))


def survey(
    store: Store, files: Sequence[Path], reference: Path | None, questions: Questions, steps: Steps | None = None
) -> list[tuple[str, Record]]:
    """Measures what the store lacks; returns all results, as `gather` takes them, by the names of their files there.

    They are in the form of `lltool perplexity --json` and `lltool bench -o json`. Divergence is that from `reference`,
    which may be one of the files. Raises InputError as `perplexity`, `divergence` and `measure` do.
    """
    steps = steps or Steps(None, questions.steps(len(files)))
    records: list[tuple[str, Record]] = []
    for text in questions.texts:
        records.extend(_judge(store, files, reference, text, questions, steps))
    if questions.context is not None:
        for path in files:
            steps.begin(f"memory of {path.name}")
            threads = max(questions.threads or (default_threads(),))
            recipe = {"model": _stamp(path), "context": questions.context, "threads": threads}
            weigh = partial(_weigh, path, questions.context, threads)
            name = f"memory-{path.stem}.json"
            records.append((name, store.compute(name, recipe, weigh)))
    for name, rows in _time(store, files, questions, steps):
        records += [(name, row) for row in rows]
    return records


def _judge(
    store: Store, files: Sequence[Path], reference: Path | None, text: Path, questions: Questions, steps: Steps
) -> Iterator[tuple[str, Record]]:
    """Divergence with all that belongs to it, also the reference's perplexity; where there is none, perplexity."""
    others = [path for path in files if path != reference]
    if reference is None or not others:
        groups = [[path] for path in files]
        judge: Callable[[Sequence[Path]], list[Record]] = partial(_predict, text, questions, steps)
    else:
        groups = _fitting(others, reference)
        judge = partial(_compare, reference, text, questions, steps)
    besides = len(files) - sum(map(len, groups))  # the reference, which is measured with the first group
    for group in groups:
        steps.begin(f"{', '.join(path.name for path in group)} on {text.name}", len(group) + besides)
        besides = 0
        paths = {f"quality-{path.stem}-{text.stem}.json": path for path in group}
        recipe = {
            "reference": _stamp(reference) if reference else None,
            "text": sha256_of([text]),
            "window": questions.window,
            "chunks": questions.chunks,
        }
        recipes = {name: {**recipe, "model": _stamp(path)} for name, path in paths.items()}

        def measured(names: Sequence[str], paths: Mapping[str, Path] = paths) -> Mapping[str, Record]:
            return dict(zip(names, judge([paths[name] for name in names]), strict=True))

        yield from store.compute_all(recipes, measured).items()


def _predict(text: Path, questions: Questions, steps: Steps, paths: Sequence[Path]) -> list[Record]:
    """Records of perplexity."""
    records: list[Record] = []
    for path in paths:
        with load_model(path, context=questions.window, deterministic=True) as model:
            start = perf_counter()
            found = perplexity(model, read_text(text), **_windows(text, questions, steps))
            records += to_records({text: found}, model, [perf_counter() - start])
    return records


def _compare(reference: Path, text: Path, questions: Questions, steps: Steps, paths: Sequence[Path]) -> list[Record]:
    """Records of divergence; all models read the text in step, so that the reference does it once."""
    with ExitStack() as stack:
        opened = (load_model(p, context=questions.window, deterministic=True) for p in (reference, *paths))
        base, *models = (stack.enter_context(model) for model in opened)
        found = divergences(base, models, read_text(text), **_windows(text, questions, steps))
        return [to_record(result, base, model, text) for result, model in zip(found, models, strict=True)]


def _windows(text: Path, questions: Questions, steps: Steps) -> dict[str, Any]:
    return {"context": questions.window, "chunks": questions.chunks, "name": str(text), "progress": steps.inside}


def _fitting(paths: Sequence[Path], *always: Path) -> list[list[Path]]:
    """All files together where memory holds them, and `always` too; else one by one."""
    free, needed = available_memory(), sum(path.stat().st_size for path in (*paths, *always))
    return [list(paths)] if free is None or needed < 0.8 * free else [[path] for path in paths]


def _weigh(path: Path, context: int, threads: int) -> Record:
    """What the file takes in use: itself, the cache of so many tokens, and the rest, as a process of its own says."""
    workload = Workload(min(context, PROBE_CONTEXT), 0)
    with load_model(path, context=workload.prompt) as model:
        config, facts = model.config, _facts(model.file)
    private = measure_footprint(resolve(Settings(path, threads=threads)), workload).private or 0
    return {
        **facts,
        "context": context,
        "cache_bytes": cache_bytes(config, context),
        "overhead_bytes": max(private - cache_bytes(config, workload.prompt), 0),
    }


def cache_bytes(config: ModelConfig, context: int) -> int:
    """Of keys and values in half precision for one sequence of `context` tokens, in whole pages."""
    tokens = -(-context // PAGE) * PAGE
    return 2 * config.layers * config.kv_heads * config.head_dim * tokens * 2


def _time(store: Store, files: Sequence[Path], questions: Questions, steps: Steps) -> Iterator[tuple[str, list[Row]]]:
    """Speeds at each number of threads of all files in turns; one by one where they do not fit in memory together."""
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
            yield name, store.compute(name, recipe, partial(_measure, points, questions.repetitions, steps))


def _measure(points: Sequence[Point], repetitions: int, steps: Steps) -> list[Row]:
    """Rows whose intervals are for comparisons among them: how the machine wanders between runs is not in them."""
    found = measure(points, Effort(repetitions), memory=False, drift=0.0, progress=steps.inside)
    return [to_row(measurement) for measurement in found]


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that a process can have before others are pushed out or its container ends it; None if nothing tells."""
    limits = []
    meminfo, container = root / "proc/meminfo", root / "sys/fs/cgroup/memory.max"
    for line in meminfo.read_text().splitlines() if meminfo.exists() else []:
        if line.startswith("MemAvailable:"):
            limits.append(int(line.split()[1]) << 10)
    if container.exists() and (limit := container.read_text().strip()).isdigit():
        limits.append(int(limit))
    return min(limits, default=None)


def _facts(file: GGUFFile) -> Record:
    facts = describe(file)
    return {
        "model": str(file.path),
        "model_sha256": sha256_of(file.paths),
        "model_bytes": facts.file_bytes,
        "model_size": facts.tensor_bytes,
        "model_n_params": facts.parameters,
    }


def _stamp(path: Path) -> list[int]:
    """Tells a file from a later one of its name without reading it."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]
