"""Which quantization of a model to take on this machine: makes several, measures them and chooses."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lltool.engine.model import DEFAULT_CONTEXT, load_model
from lltool.eval.bench.rows import Interval
from lltool.eval.choice import Candidate, Choice, choose
from lltool.eval.perplexity import Method
from lltool.eval.provenance import tool_digest
from lltool.eval.report import decode_speeds
from lltool.eval.runs import Entry, Record, Runs, gather
from lltool.eval.steps import Progress, Steps
from lltool.eval.store import Store
from lltool.eval.survey import PROBE_CONTEXT, Questions, cache_bytes, survey
from lltool.eval.text import read_text
from lltool.gguf.describe import describe
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
    """`ram` bytes for the file, a cache for `context` tokens and the rest; `preference` is a key of TOLERANCES."""

    ram: int
    context: int | None = None  # the model's own, or 4096 if that is less
    preference: str = "balance"


@dataclass(frozen=True)
class Recommendation:
    """What was measured of which files, and the choice among them."""

    runs: Runs
    choice: Choice
    path: Path  # of the file chosen
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
    progress: Progress | None = None,
) -> Recommendation:
    """Chooses among `source`, what `types` make of it in `folder`, and `others`, files that are there already.

    Files and results in `folder` are used again. What does not fit in memory is neither made nor measured. `say` is
    told, before the work, which types cannot be had and where others stand in. Raises InputError when nothing fits, and
    as `plan_quantization` and `survey` do.
    """
    steps = Steps(progress, 0)
    questions = questions or Questions()
    context, cache = _check(source, wishes.context, questions)
    store = Store(folder, {"source": sha256_of([source]), "tool": tool_digest()})
    with open_gguf(source) as file:
        plans = _plan(file, types, options, request, say)
        stem = re.sub(r"[-._](bf16|f16|f32)$", "", source.stem, flags=re.IGNORECASE)
        planned = {f"{stem}-{type}.gguf": plan for type, plan in plans.items()}
        sizes = {name: file_bytes(plan) for name, plan in planned.items()}
        wanted = {name: plan for name, plan in planned.items() if sizes[name] + cache <= wishes.ram}
        given = list(dict.fromkeys((source, *others)))
        present = [path for path in given if _size(path) + cache <= wishes.ram]
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
    """The context in tokens, and the bytes that its keys and values take. Texts that are too short are told early."""
    with load_model(source, context=min(context or PROBE_CONTEXT, PROBE_CONTEXT)) as model:
        longest = model.config.context_length
        if context is not None and context > longest:
            raise InputError(f"{source}: a context of {context} tokens, but the model was made for {longest} at most")
        context = context or min(longest, DEFAULT_CONTEXT)
        for text in questions.texts:
            method = Method(context=questions.window)
            method.cut(method.encode(model.tokenizer, read_text(text)), name=str(text))
        return context, cache_bytes(model.config, context)


def _plan(
    file: GGUFFile, types: Sequence[str], options: Options, request: Request, say: Callable[[str], None]
) -> dict[str, Plan]:
    """Plans by type, of those that can be made of the file. Its own type is the file itself."""
    plans = {}
    errors = []
    for type in types:
        recipe = find_recipe(type)
        if recipe.name == describe(file).file_type:
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
    """What tells the file that the plan makes from others."""
    guidance = plan.request.guidance
    return {
        "types": {choice.tensor.name: choice.type.name for choice in plan.choices},
        "importance": sha256_of([guidance.path]) if guidance else None,
    }


def _unmeasured(name: str, size: int, cache: int) -> Record:
    return {"model": name, "model_bytes": size, "cache_bytes": cache, "overhead_bytes": 0}


def _candidate(entry: Entry, speeds: Mapping[str, Interval], source: Path) -> Candidate:
    assert entry.memory is not None
    loss = (0.0, 0.0) if entry.path == str(source) else entry.divergence
    speed = speeds.get(entry.name)
    if loss is None or speed is None:
        return Candidate(entry.name, entry.memory)
    return Candidate(entry.name, entry.memory, *loss, speed.middle)


def _size(path: Path) -> int:
    with open_gguf(path) as file:
        return file.size
