"""Quantizes to a target size: finds the best mix of types, and keeps it only if it beats the best plain recipe."""

import hashlib
import re
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lltool.engine.model import load_model
from lltool.eval.common.intervals import mean_error
from lltool.eval.common.quantities import SIZES, parse_size
from lltool.eval.common.steps import CountProgress
from lltool.eval.common.store import write_whole
from lltool.eval.divergence.divergence import DivergenceResult, divergence
from lltool.eval.importance.collect import Collected, collect
from lltool.eval.importance.inputs import LinearInputs
from lltool.eval.scoring.perplexity import bos_of
from lltool.eval.search.sensitivity import pick_windows
from lltool.eval.search.target import PROBE, WINDOW, Evidence, Mix, collect_evidence, find_mix, least_bytes, quantizable
from lltool.gguf.digest import sha256_of
from lltool.gguf.errors import InputError
from lltool.gguf.reader import GGUFFile
from lltool.gguf.regular_file import read_bytes
from lltool.gguf.source import Bytes, Tensor
from lltool.gguf.whole_file import check_output, move_into_place, scratch_folder, temporary_home
from lltool.gguf.writer import check_replaced
from lltool.quant.choose import DEFAULTS, PLAIN, ChosenType
from lltool.quant.codec import decode
from lltool.quant.compensate import encode_compensated
from lltool.quant.guidance import Guidance
from lltool.quant.plan import NOTHING_MORE, Plan, Request, model_name, plan_quantization, size_of
from lltool.quant.quantize import file_bytes, is_made_of, write_plans
from lltool.quant.recipe_language import Recipe, format_recipe
from lltool.quant.recipes import RECIPES, find_recipe

JUDGED_WINDOWS, JUDGED_CONTEXT = 8, 512
OUTPUT_WINDOWS = 16

_NOTE = "lltool quantize --target:"  # how the note in a mix's recipe begins


# Takes the name of a stage; gives a context with a function to call with the units done and the total.
Stages = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]


@dataclass(frozen=True)
class Target:
    """The largest size of a file: in bytes, in bits per weight, or the size that a recipe gives."""

    bytes: int | None = None
    bits: float | None = None
    recipe: Recipe | None = None


@dataclass(frozen=True)
class MixGain:
    """The mix and the plain recipe on text that neither the search nor the mix's probes have seen.

    `gain` is how much less the mix diverges, in nats per token, and `error` its standard error over the same tokens.
    """

    mix: DivergenceResult
    plain: DivergenceResult
    gain: float
    error: float


@dataclass(frozen=True)
class Outcome:
    """A file made to a target. `kept` tells whether it is the mix; `verdict` is None if no plain recipe is as small."""

    path: Path
    recipe_path: Path | None
    plan: Plan
    mix: Mix
    budget: int
    rival: str | None
    verdict: MixGain | None
    kept: bool


def parse_target(text: str) -> Target:
    """Parses "900MB", "1.2GiB", "943718400", "4.5bpw" or a recipe's name. Raises InputError for anything else."""
    if found := re.fullmatch(r"(\d+(?:\.\d+)?) ?bpw", text, re.IGNORECASE):
        return Target(bits=float(found[1]))
    with suppress(InputError):
        return Target(recipe=find_recipe(text))
    with suppress(InputError):
        return Target(bytes=parse_size(text))
    raise InputError(f"target {text!r}: wanted a size (900MB, 1.2GiB; {SIZES}), bits (4.5bpw) or a recipe's name")


def quantize_to_target(
    source: str | Path,
    path: str | Path | None,
    target: Target,
    text: str,
    *,
    request: Request = NOTHING_MORE,
    probes: Path | None = None,
    tokens: int = 512,
    compensated: int = 0,
    threads: int | None = None,
    force: bool = False,
    stages: Stages = lambda _: nullcontext(lambda done, total: None),
) -> Outcome:
    """Quantizes `source` to `path` with the types that diverge least in the bytes of `target`, header included.

    The default path is `NAME-mix-TARGET.gguf` beside the source; a file of that name is replaced only if it was made
    from this source, or with `force`. With `compensated` tokens, the rounding of each row compensates its own errors on
    the inputs that these tokens give.

    The first three quarters of `text` are for the probes, whose measurements the file `probes` keeps; the last quarter
    is for the judgement. The mix is also written as a recipe, to `path` with the suffix .recipe.toml. Raises InputError
    as `plan_quantization` and `write_plans` do, for a target that is too small and a text that is too short.
    """
    if request.prune or request.keep_split:
        raise InputError(
            "a target excludes pruned layers and kept shards; prune or merge first, then quantize the result"
        )
    source, is_named = Path(source), path is not None
    path = Path(path) if path is not None else default_path(source, target)
    recipe_path = path.with_suffix(".recipe.toml")
    _check_recipe_file(recipe_path)
    with load_model(source, precision="f32", context=WINDOW, batch=WINDOW, threads=threads) as model:
        digest = sha256_of(model.file.paths)
        check_output(path, model.file.paths)
        if not is_named and not force:
            check_replaced(path, lambda metadata: is_made_of(metadata, source, lambda: digest))
        _check_floor(model.file, target, request)
        ids = model.tokenizer.encode(text)
        split = len(ids) * 3 // 4
        wanted = max(tokens, 2 * JUDGED_CONTEXT)
        if len(ids) - split < wanted:
            raise InputError(f"the text has {len(ids)} tokens, wanted at least {4 * wanted}; give a longer one")
        guidance = request.guidance
        if guidance:
            windows = pick_windows(ids[:split], OUTPUT_WINDOWS, WINDOW, bos_of(model))
            guidance = add_output(guidance, source, windows, threads)
        guided = replace(request, guidance=guidance)
        key = {
            "model": digest,
            "text": hashlib.sha256(np.array(ids[:split], np.int32).tobytes()).hexdigest(),
            "importance": sha256_of([guidance.path]) if guidance else None,
            "entries": len(guidance.importance.sums) if guidance else 0,
            "probe": PROBE.name,
            "tokens": tokens,
        }
        evidence = Evidence(key, probes)
        with stages("probes") as progress:
            collect_evidence(model, guidance, ids[:split], evidence, tokens=tokens, progress=progress)
        rival, budget = _rival(model.file, target, evidence, request)
        plan, mix = plan_mix(model.file, evidence, budget, guided, compensated)
        if compensated:
            windows = pick_windows(ids[:split], -(-compensated // WINDOW), WINDOW, bos_of(model))
            plan = compensate(plan, LinearInputs(model.program, windows, model.threads), threads)
        plans = [plan] if rival is None else [plan, rival[1]]
        with scratch_folder(temporary_home(path) or Path(tempfile.gettempdir()), path) as scratch:
            mixed, plain = scratch / "mix.gguf", scratch / "plain.gguf"
            with stages("B") as progress:
                write_plans(plans, [mixed, plain][: len(plans)], threads=threads, progress=progress)
            verdict = None
            if rival is not None:
                with stages("windows") as progress:
                    verdict = measure_gain(source, mixed, plain, ids[split:], threads=threads, progress=progress)
            kept = verdict is None or verdict.gain > 0
            move_into_place(mixed if kept else plain, path)
    if kept:
        write_whole(recipe_path, format_recipe(plan.recipe))
    kept_plan = plan if kept or rival is None else rival[1]
    return Outcome(
        path, recipe_path if kept else None, kept_plan, mix, budget, rival[0] if rival else None, verdict, kept
    )


def default_path(source: Path, target: Target) -> Path:
    """The path of the file if none is named."""
    if target.recipe:
        size = target.recipe.name
    else:
        size = f"{target.bits:g}bpw" if target.bits is not None else str(target.bytes)
    return source.with_name(f"{model_name(source)}-mix-{size}.gguf")


def _check_recipe_file(path: Path) -> None:
    """Raises InputError if the mix's recipe would replace a file that is not the recipe of a mix."""
    check_output(path)
    if path.exists() and _NOTE not in read_bytes(path).decode("utf-8", "replace"):
        raise InputError(
            f"{path}: exists, and is not the recipe of a mix; move it away, or this mix's would replace it"
        )


def add_output(guidance: Guidance, source: str | Path, windows: NDArray[np.int32], threads: int | None) -> Guidance:
    """Adds importance for the output matrix, measured on `windows`; llama-imatrix keeps none unless it is asked to."""
    importance = guidance.importance
    outputs = {"output.weight", "token_embd.weight"}  # a program multiplies by one of them
    if outputs & importance.sums.keys():
        return guidance
    with load_model(
        source, precision="f32", context=WINDOW, batch=WINDOW, threads=threads, observe=outputs.__contains__
    ) as model:
        *_, collected = collect(model, windows, Collected({}, {}), perplexity=False, process_output=True)
    sums, counts = {**importance.sums, **collected.sums}, {**importance.counts, **collected.counts}
    return replace(guidance, importance=replace(importance, sums=sums, counts=counts))


def plan_mix(
    file: GGUFFile, evidence: Evidence, budget: int, request: Request, compensated: int = 0
) -> tuple[Plan, Mix]:
    """The plan of the best mix in a file of at most `budget` bytes, and the mix."""
    tensors = quantizable(file)
    room = budget
    for _ in range(8):  # the header holds the recipe, whose length is known only once it is chosen
        mix = find_mix(tensors, evidence, room)
        note = f"{_NOTE} expected divergence {mix.predicted:.4f}"
        note += f"; rounding compensated on {compensated} tokens" if compensated else ""
        recipe = mix.recipe(f"mix-{budget}", note)
        plan = plan_quantization(file, recipe, DEFAULTS, request)
        excess = file_bytes(plan) - budget
        if excess <= 0:
            return plan, mix
        room -= excess
    raise InputError(f"{file.path}: no mix found that fits {budget} bytes")


def compensate(plan: Plan, inputs: LinearInputs, threads: int | None = None) -> Plan:
    """The plan with the body's matrices in their new types already, rounded with compensation when they are read."""
    return replace(plan, choices=[_compensate(choice, inputs, threads) for choice in plan.choices])


def _compensate(choice: ChosenType, inputs: LinearInputs, threads: int | None) -> ChosenType:
    tensor = choice.tensor
    if choice.type == tensor.type or choice.type in PLAIN or not inputs.has(tensor.name):
        return choice

    def read(start: int, stop: int) -> Bytes:
        weights = decode(tensor.read(start, stop), tensor.type, threads)
        return encode_compensated(weights, choice.type, inputs.correlation(tensor.name), threads)

    return replace(choice, tensor=Tensor(tensor.name, choice.type, tensor.shape, read))


def measure_gain(
    base: Path,
    mix: Path,
    plain: Path,
    ids: Sequence[int],
    *,
    threads: int | None = None,
    progress: CountProgress | None = None,
) -> MixGain:
    """Measures the divergences of both files from `base` on token ids and compares them."""
    results = []
    for index, path in enumerate((mix, plain)):

        def show(done: int, total: int, _: DivergenceResult, before: int = index) -> None:
            if progress:
                progress(before * total + done, 2 * total)

        with (
            load_model(base, context=JUDGED_CONTEXT, threads=threads, deterministic=True) as first,
            load_model(path, context=JUDGED_CONTEXT, threads=threads, deterministic=True) as second,
        ):
            results.append(divergence(first, second, ids, context=JUDGED_CONTEXT, chunks=JUDGED_WINDOWS, progress=show))
    gains = results[1].tokens - results[0].tokens
    return MixGain(results[0], results[1], *mean_error(gains))


def _check_floor(file: GGUFFile, target: Target, request: Request) -> None:
    """Raises InputError, before the long work, for a target that is below the smallest types."""
    tensors = quantizable(file)
    plan = plan_quantization(file, find_recipe(PROBE.name), replace(DEFAULTS, pure=True), request)
    names = {tensor.name for tensor in tensors}
    others = sum(size_of(choice) for choice in plan.choices if choice.tensor.name not in names)
    header = file_bytes(plan) - plan.bytes
    least = least_bytes(tensors, has_importance=request.guidance is not None) + others + header
    if target.bytes is not None and target.bytes < least:
        raise InputError(
            f"{file.path}: a file of {target.bytes:,} bytes is impossible: its smallest types take {least:,}; "
            f"ask for at least {least}"
        )
    bits = 8 * (least - header) / plan.weights
    if target.bits is not None and target.bits < bits:
        raise InputError(
            f"{file.path}: {target.bits:g} bits a weight are impossible: its smallest types take {bits:.3f}; "
            "ask for more"
        )


def _rival(file: GGUFFile, target: Target, evidence: Evidence, request: Request) -> tuple[tuple[str, Plan] | None, int]:
    """The plain recipe or pure type of least predicted divergence that fits the target, and the target in bytes."""
    if target.recipe:
        plan = plan_quantization(file, target.recipe, DEFAULTS, request)
        return (target.recipe.name, plan), file_bytes(plan)
    plans: list[tuple[str, Plan]] = []
    for recipe, pure in product(RECIPES.values(), (False, True)):
        try:
            plan = plan_quantization(file, recipe, replace(DEFAULTS, pure=pure), request)
        except InputError:  # this model or its importance does not allow the recipe
            continue
        plans.append((f"--pure {recipe.name}" if pure else recipe.name, plan))
    if not plans:
        raise InputError(f"{file.path}: no recipe can be applied to it")
    if target.bytes is not None:
        budget = target.bytes
    else:
        assert target.bits is not None
        header = min(file_bytes(plan) - plan.bytes for _, plan in plans)
        budget = int(plans[0][1].weights * target.bits / 8) + header

    def predicted(rival: tuple[str, Plan]) -> float:
        choices = [c for c in rival[1].choices if c.tensor.name in evidence.divergences]
        return sum(evidence.predict(c.tensor.name, c.type) for c in choices)

    return min((rival for rival in plans if file_bytes(rival[1]) <= budget), key=predicted, default=None), budget
