"""Quantizing to a size: finds the best mix for it, and keeps that only where it beats the plain recipe of the size."""

import hashlib
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import product
from math import sqrt
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lltool.engine.model import load_model
from lltool.eval.divergence import DivergenceResult, divergence
from lltool.eval.importance import Collected, collect
from lltool.eval.inputs import LinearInputs
from lltool.eval.perplexity import bos_of
from lltool.eval.sensitivity import pick_windows
from lltool.eval.store import write_whole
from lltool.eval.target import PROBE, WINDOW, Evidence, Mix, find_mix, measure, quantizable
from lltool.gguf.digest import sha256_of
from lltool.gguf.errors import InputError
from lltool.gguf.reader import GGUFFile
from lltool.gguf.source import Bytes, Tensor
from lltool.quant.choose import DEFAULTS, PLAIN, Choice
from lltool.quant.codec import decode
from lltool.quant.compensate import encode_compensated
from lltool.quant.guidance import Guidance
from lltool.quant.plan import NOTHING_MORE, Plan, Request, plan_quantization
from lltool.quant.quantize import file_bytes, write_plans
from lltool.quant.recipe_language import Recipe, format_recipe
from lltool.quant.recipes import RECIPES, find_recipe

JUDGED_WINDOWS, JUDGED_CONTEXT = 8, 512
OUTPUT_WINDOWS = 16

_UNITS = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "KI": 2**10, "MI": 2**20, "GI": 2**30}

# Gives, for the name of a stage, a context with a function that is told what is done and how much there is.
Stages = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]


@dataclass(frozen=True)
class Target:
    """How large a file may be: so many bytes, so many bits a weight, or as large as a recipe makes it."""

    bytes: int | None = None
    bits: float | None = None
    recipe: Recipe | None = None


@dataclass(frozen=True)
class Verdict:
    """The mix and the plain recipe on text that neither the search nor (for the mix) the probes have seen.

    `gain` is how much less the mix diverges, in nats a token, and `error` its standard error over the same tokens.
    """

    mix: DivergenceResult
    plain: DivergenceResult
    gain: float
    error: float


@dataclass(frozen=True)
class Outcome:
    """A file made to a target. `kept`: it is the mix; `verdict` is None where no plain recipe is as small."""

    path: Path
    recipe_path: Path | None
    plan: Plan
    mix: Mix
    budget: int
    rival: str | None
    verdict: Verdict | None
    kept: bool


def parse_target(text: str) -> Target:
    """Of "900MB", "1.2GiB", "943718400", "4.5bpw", or the name of a recipe."""
    if found := re.fullmatch(r"(\d+(?:\.\d+)?) ?bpw", text, re.IGNORECASE):
        return Target(bits=float(found[1]))
    if found := re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMG]I?)B?|(\d{3,})B?", text, re.IGNORECASE):
        size = float(found[3]) if found[3] else float(found[1]) * _UNITS[found[2].upper()]
        return Target(bytes=int(size))
    try:
        return Target(recipe=find_recipe(text))
    except InputError:
        raise InputError(f"target {text!r}: wanted a size (900MB, 1.2GiB), bits (4.5bpw) or a recipe's name") from None


def quantize_to_target(
    source: str | Path,
    path: str | Path,
    target: Target,
    text: str,
    *,
    request: Request = NOTHING_MORE,
    probes: Path | None = None,
    tokens: int = 512,
    compensated: int = 0,
    threads: int | None = None,
    stages: Stages = lambda _: nullcontext(lambda done, total: None),
) -> Outcome:
    """Quantizes `source` to `path` with the types that diverge least in the bytes of `target`, header included.

    With `compensated` tokens, the rounding of each row makes up for its own errors on the inputs that these give.

    The first three quarters of `text` are for the probes, of which the file `probes` keeps what is measured; the last
    quarter is for the judgement. The mix is written as a recipe too, `path` with the ending .recipe.toml. Raises
    InputError as `plan_quantization` and `write_plans` do, for a target that is too small and a text that is too short.
    """
    path = Path(path)
    if request.prune or request.keep_split:
        raise InputError("a target with pruned layers or kept shards: prune or merge first, then quantize the result")
    with load_model(source, precision="f32", context=WINDOW, batch=WINDOW, threads=threads) as model:
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
            "model": sha256_of(model.file.paths),
            "text": hashlib.sha256(np.array(ids[:split], np.int32).tobytes()).hexdigest(),
            "importance": sha256_of([guidance.path]) if guidance else None,
            "entries": len(guidance.importance.sums) if guidance else 0,
            "probe": PROBE.name,
            "tokens": tokens,
        }
        evidence = Evidence(key, probes)
        with stages("probes") as progress:
            measure(model, guidance, ids[:split], evidence, tokens=tokens, progress=progress)
        rival, budget = _rival(model.file, target, evidence, request)
        plan, mix = plan_mix(model.file, evidence, budget, guided, compensated)
        if compensated:
            windows = pick_windows(ids[:split], -(-compensated // WINDOW), WINDOW, bos_of(model))
            plan = compensate(plan, LinearInputs(model.program, windows, model.threads), threads)
        plain = path.with_name(f".{path.stem}.plain{path.suffix}")
        plans, paths = ([plan], [path]) if rival is None else ([plan, rival[1]], [path, plain])
        try:
            with stages("B") as progress:
                write_plans(plans, paths, threads=threads, progress=progress)
            verdict = None
            if rival is not None:
                with stages("windows") as progress:
                    verdict = judge(Path(source), path, plain, ids[split:], threads=threads, progress=progress)
            kept = verdict is None or verdict.gain > 0
            if not kept:
                plain.replace(path)
        finally:
            plain.unlink(missing_ok=True)
    recipe_path = path.with_suffix(".recipe.toml") if kept else None
    if recipe_path:
        write_whole(recipe_path, format_recipe(plan.recipe))
    kept_plan = plan if kept or rival is None else rival[1]
    return Outcome(path, recipe_path, kept_plan, mix, budget, rival[0] if rival else None, verdict, kept)


def add_output(guidance: Guidance, source: str | Path, windows: NDArray[np.int32], threads: int | None) -> Guidance:
    """With importance for the output matrix, measured on `windows`: llama-imatrix keeps none unless it is asked to."""
    importance = guidance.importance
    outputs = {"output.weight", "token_embd.weight"}  # which of them is multiplied with, the program knows
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
    """The plan of the best mix in a file of `budget` bytes."""
    tensors = quantizable(file)
    room = budget
    for _ in range(8):  # the header holds the recipe, whose length is known once it is chosen
        mix = find_mix(tensors, evidence, room)
        note = f"lltool quantize --target: expected divergence {mix.predicted:.4f}"
        note += f"; rounding compensated on {compensated} tokens" if compensated else ""
        recipe = mix.recipe(f"mix-{budget}", note)
        plan = plan_quantization(file, recipe, DEFAULTS, request)
        excess = file_bytes(plan) - budget
        if excess <= 0:
            return plan, mix
        room -= excess
    raise InputError(f"{file.path}: no mix found that fits {budget} bytes")


def compensate(plan: Plan, inputs: LinearInputs, threads: int | None = None) -> Plan:
    """The plan with matrices of the body in their new types already, rounded with compensation when they are read."""
    return replace(plan, choices=[_compensate(choice, inputs, threads) for choice in plan.choices])


def _compensate(choice: Choice, inputs: LinearInputs, threads: int | None) -> Choice:
    tensor = choice.tensor
    if choice.type == tensor.type or choice.type in PLAIN or not inputs.has(tensor.name):
        return choice

    def read(start: int, stop: int) -> Bytes:
        weights = decode(tensor.read(start, stop), tensor.type, threads)
        return encode_compensated(weights, choice.type, inputs.correlation(tensor.name), threads)

    return replace(choice, tensor=Tensor(tensor.name, choice.type, tensor.shape, read))


def judge(
    base: Path,
    mix: Path,
    plain: Path,
    ids: Sequence[int],
    *,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Verdict:
    """Both files' divergence from `base` on token ids."""
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
    return Verdict(results[0], results[1], float(gains.mean()), float(gains.std() / sqrt(max(1, gains.size - 1))))


def _rival(file: GGUFFile, target: Target, evidence: Evidence, request: Request) -> tuple[tuple[str, Plan] | None, int]:
    """The plain recipe, or pure type, of least predicted divergence in the bytes of the target, and these bytes."""
    if target.recipe:
        plan = plan_quantization(file, target.recipe, DEFAULTS, request)
        return (target.recipe.name, plan), file_bytes(plan)
    plans: list[tuple[str, Plan]] = []
    for recipe, pure in product(RECIPES.values(), (False, True)):
        try:
            plan = plan_quantization(file, recipe, replace(DEFAULTS, pure=pure), request)
        except InputError:  # a recipe that this model or its importance does not allow is no rival
            continue
        plans.append((f"--pure {recipe.name}" if pure else recipe.name, plan))
    if not plans:
        raise InputError(f"{file.path}: no recipe can be made of it")
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
