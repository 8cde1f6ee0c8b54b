"""Recommends a quantization of a model for this machine: makes several, measures them and chooses one."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lltool.engine.model import DEFAULT_CONTEXT, load_model
from lltool.eval.bench.results.rows import Interval
from lltool.eval.common.provenance import tool_digest
from lltool.eval.common.steps import Steps, TitledProgress
from lltool.eval.common.store import Store
from lltool.eval.common.text import read_evaluation_text
from lltool.eval.scoring.perplexity import Method
from lltool.eval.selection.choice import ChosenFile, RatedFile, choose
from lltool.eval.selection.report import decode_speeds
from lltool.eval.selection.runs import MeasuredFile, Record, Runs, gather
from lltool.eval.selection.survey import PROBE_CONTEXT, Questions, cache_bytes, survey
from lltool.gguf.describe import describe_file
from lltool.gguf.digest import sha256_of
from lltool.gguf.errors import InputError
from lltool.gguf.reader import GGUFFile, open_gguf
from lltool.quant.choose import DEFAULTS, Options
from lltool.quant.plan import NOTHING_MORE, Plan, Request, plan_quantization
from lltool.quant.quantize import file_bytes, write_plans
from lltool.quant.recipes import find_recipe

DEFAULT_TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "IQ4_XS", "Q3_K_M")


@dataclass(frozen=True)
class Wishes:
    """`ram` is the bytes for file, cache of `context` tokens and the rest; `preference` is a key of TOLERANCES."""

    ram: int
    context: int | None = None  # None: the model's own, at most 4096
    preference: str = "balance"


@dataclass(frozen=True)
class Recommendation:
    """The measured files and the choice among them."""

    runs: Runs
    choice: ChosenFile
    path: Path  # of the chosen file
    ram: int
    context: int


def recommend(
    source: Path,
    folder: Path,
    wishes: Wishes,
    *,
    types: Sequence[str] = DEFAULT_TYPES,
    others: Sequence[Path] = (),
    options: Options = DEFAULTS,
    request: Request = NOTHING_MORE,
    questions: Questions | None = None,
    say: Callable[[str], None] = lambda _: None,
    progress: TitledProgress | None = None,
) -> Recommendation:
    """Chooses among `source`, its quantizations to `types` in `folder`, and `others`, which are existing files.

    Files and results in `folder` are reused. Files that do not fit in memory are neither made nor measured. Before the
    work, `say` is called for types that cannot be made and for fallbacks to other types. Raises InputError if nothing
    fits, and as `plan_quantization` and `survey` do.
    """
    steps = Steps(progress, 0)
    questions = questions or Questions()
    context, cache = _check(source, wishes.context, questions)
    store = Store(folder, {"source": sha256_of([source]), "tool": tool_digest()})
    with open_gguf(source) as file:
        plans = _plan(file, types, options, request, say)
        planned = {plan.default_path().name: plan for plan in plans.values()}
        sizes = {name: file_bytes(plan) for name, plan in planned.items()}
        wanted = {name: plan for name, plan in planned.items() if sizes[name] + cache <= wishes.ram}
        given = list(dict.fromkeys((source, *others)))
        present = [path for path in given if _size(path) + cache <= wishes.ram]
        _check_inputs(folder, wanted, given)
        questions = replace(questions, context=context)
        steps.total = 1 + questions.steps(len(wanted) + len(present))
        steps.begin("quantize")
        made = store.make_all(
            {name: _recipe_of(plan) for name, plan in wanted.items()},
            lambda missing: write_plans(
                [wanted[name] for name in missing], list(missing.values()), progress=steps.inside
            ),
        )
    left_out = [(name, sizes[name]) for name in planned if name not in wanted]
    left_out += [(str(path), _size(path)) for path in given if path not in present]
    records: list[tuple[str, Record]] = [("", _unmeasured(name, size, cache)) for name, size in left_out]
    files = [*present, *made.values()]
    if files:
        records += survey(store, files, source, questions, steps)
    steps.end()
    runs = gather(records)
    speeds = decode_speeds(runs.entries)
    choice = choose([_candidate(entry, speeds, source) for entry in runs.entries], wishes.ram, wishes.preference)
    chosen = next(entry for entry in runs.entries if entry.name == choice.candidate.name)
    return Recommendation(runs, choice, Path(chosen.path), wishes.ram, context)


def _check(source: Path, context: int | None, questions: Questions) -> tuple[int, int]:
    """The context in tokens, and the bytes of its keys and values.

    Raises InputError for a context that is too long and, before any work, for texts that are too short.
    """
    with load_model(source, context=min(context or PROBE_CONTEXT, PROBE_CONTEXT)) as model:
        longest = model.config.context_length
        if context is not None and context > longest:
            raise InputError(f"{source}: a context of {context} tokens, but the model was made for {longest} at most")
        context = context or min(longest, DEFAULT_CONTEXT)
        for text in questions.texts:
            method = Method(context=questions.window)
            method.cut(method.encode(model.tokenizer, read_evaluation_text(text)), name=str(text))
        return context, cache_bytes(model, context)


def _check_inputs(folder: Path, names: Iterable[str], inputs: Sequence[Path]) -> None:
    """Raises InputError if a file to be made would replace one that is measured."""
    for name in names:
        target = folder / name
        for path in inputs:
            if target.exists() and path.exists() and target.samefile(path):
                raise InputError(
                    f"{path}: is also the name of a file to be made; leave its type out with --types or name another "
                    f"folder with -o"
                )


def _plan(
    file: GGUFFile, types: Sequence[str], options: Options, request: Request, say: Callable[[str], None]
) -> dict[str, Plan]:
    """Plans by type, for the types that the file allows; its own type needs no plan."""
    plans = {}
    errors = []
    for type in types:
        recipe = find_recipe(type)
        if recipe.name == describe_file(file).file_type:
            continue
        try:
            plan = plan_quantization(file, recipe, options, request)
        except InputError as error:
            errors.append(error)
            say(f"{recipe.name} is left out: {error}")
            continue
        plans[recipe.name] = plan
        for note in plan.notes:
            say(f"{recipe.name}: {note}")
    if errors and not plans:
        raise errors[0]
    return plans


def _recipe_of(plan: Plan) -> dict[str, Any]:
    """The types and the importance that distinguish the plan's file from others."""
    guidance = plan.request.guidance
    return {
        "types": {choice.tensor.name: choice.type.name for choice in plan.choices},
        "importance": sha256_of([guidance.path]) if guidance else None,
    }


def _unmeasured(name: str, size: int, cache: int) -> Record:
    return {"model": name, "model_bytes": size, "cache_bytes": cache, "overhead_bytes": 0}


def _candidate(entry: MeasuredFile, speeds: Mapping[str, Interval], source: Path) -> RatedFile:
    assert entry.memory is not None
    loss = (0.0, 0.0) if entry.path == str(source) else entry.divergence
    speed = speeds.get(entry.name)
    if loss is None or speed is None:
        return RatedFile(entry.name, entry.memory)
    return RatedFile(entry.name, entry.memory, *loss, speed.middle)


def _size(path: Path) -> int:
    with open_gguf(path) as file:
        return file.size
