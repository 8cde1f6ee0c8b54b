"""Records a baseline: a reference in float32, honest runs that show the noise, answers to fixed prompts, and speed."""

from dataclasses import replace
from pathlib import Path

from lltool import __version__
from lltool.engine.cpu.threads import default_threads
from lltool.engine.cpu.tuning import cpu_name
from lltool.engine.text.tokenizer import read_tokenizer
from lltool.eval.common.steps import Steps, TitledProgress
from lltool.eval.divergence.reference_file import compare_with_reference, open_reference, write_reference
from lltool.eval.gate.baseline import (
    FORMAT,
    VERSION,
    Baseline,
    Exact,
    HonestRun,
    TextFacts,
    describe_model,
    read_reference_name,
    write_baseline,
)
from lltool.eval.gate.prompts import PROMPTS, answer, encode_prompts, follow
from lltool.eval.gate.runs import cut_text, first_windows, honest_settings, load, rounding_of, text_run_of
from lltool.eval.gate.speed import Speed
from lltool.gguf.digest import sha256_of
from lltool.gguf.errors import InputError
from lltool.gguf.reader import open_gguf
from lltool.gguf.whole_file import check_output, whole_files

CONTEXT, WINDOWS, EXACT_WINDOWS, ANSWER_TOKENS = 256, 16, 2, 24
TOP = 16  # the tokens of each distribution that the reference keeps
REFERENCE = ".npz"


def record(
    model_path: Path,
    text_path: Path,
    path: Path,
    *,
    context: int = CONTEXT,
    windows: int = WINDOWS,
    answer_tokens: int = ANSWER_TOKENS,
    threads: int | None = None,
    progress: TitledProgress | None = None,
) -> Baseline:
    """Writes a baseline of a model on `windows` windows of a text, as JSON to `path`, and its reference beside it.

    Raises InputError for a text that is too short and for a `path` that does not end with .json.
    """
    if path.suffix != ".json":
        raise InputError(f"{path}: wanted a name that ends with .json; the reference goes beside it, to {REFERENCE}")
    with open_gguf(model_path) as file:
        tokenizer = read_tokenizer(file)
        facts = describe_model(file, tokenizer)
        taken = cut_text(tokenizer, text_path, context, windows)
        found = zip(PROMPTS, encode_prompts(file.metadata, tokenizer), strict=True)
        prompts = [(messages, ids) for messages, ids in found if ids is not None]
    text = TextFacts(str(text_path), sha256_of([text_path]))
    reference_path = path.with_suffix(REFERENCE)
    for output in (path, reference_path):
        check_output(output, (model_path, text_path))
    if reference_path.exists() and read_reference_name(path) != reference_path.name:
        raise InputError(f"{reference_path}: exists, and is not the reference of {path}; name another baseline")
    room = max(context, *(len(ids) + answer_tokens for _, ids in prompts))
    settings, speed = honest_settings(), Speed(threads or default_threads())

    # The baseline is put in place first: a reference without one would be taken for a file of the user.
    with whole_files([path, reference_path]) as (baseline_file, reference_file):
        steps = Steps(progress, 4 + len(settings))
        steps.begin("the reference, in float32")
        with load(model_path, settings[0], room, precision="f32", threads=threads, sequences=len(prompts)) as model:
            sources = {"text": text.path, "text_sha256": text.sha256}
            write_reference(reference_file, model, taken, top=TOP, sources=sources, progress=steps.inside)
            steps.begin("answers, in float32")
            answers = answer(model, prompts, answer_tokens)
            rounding = rounding_of(model)
        reference = open_reference(reference_file)

        runs = []
        for setting in settings:
            steps.begin(f"in 8 bits, {setting.instruction_set}")
            with load(model_path, setting, room, threads=threads) as model:
                text_run = text_run_of(compare_with_reference(reference, model, steps.inside))
                runs.append(HonestRun(setting, text_run, [follow(model, a.prompt, a) for a in answers]))
                if setting == settings[0]:
                    speed.sample(model)
        exact = []
        few = first_windows(reference, EXACT_WINDOWS)
        for setting in (settings[-1], replace(settings[0], batch=100)):
            steps.begin(f"again in float32, {setting.instruction_set}, batch {setting.batch}")
            with load(model_path, setting, room, precision="f32", threads=threads) as model:
                exact.append(text_run_of(compare_with_reference(few, model, steps.inside)))
        with load(model_path, settings[0], room, threads=threads) as model:
            speed.sample(model)

        baseline = Baseline(
            format=FORMAT,
            version=VERSION,
            tool=f"lltool {__version__}",
            cpu=cpu_name(),
            model=facts,
            text=text,
            reference=reference_path.name,
            reference_sha256=sha256_of([reference_file]),
            rounding=rounding,
            runs=runs,
            exact=Exact(len(few.windows), exact),
            answers=answers,
            speed=speed,
        )
        write_baseline(baseline_file, baseline)
    steps.end()
    return baseline
