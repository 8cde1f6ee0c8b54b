"""A GGUF file as the source of a conversion: the plans of `lltool quantize`, with the defaults of `lltool convert`."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from lltool.gguf.errors import InputError
from lltool.gguf.reader import GGUFFile
from lltool.quant.choose import PLAIN, NeedsImportance
from lltool.quant.convert.conversion import TARGET_TYPES, Wishes
from lltool.quant.plan import BUFFER_BYTES, Plan, Request, estimate_memory, plan_quantization
from lltool.quant.quantize import file_bytes

COPY = "COPY"  # the recipe of "auto": every tensor keeps its type


def plan_from_gguf(file: GGUFFile, outtypes: Sequence[str], wishes: Wishes) -> list[Plan]:
    """Plans new files of an open GGUF file, one for each type; with "auto", every tensor keeps its type.

    Tensors that are already quantized are quantized again, which a note says. Raises InputError for wishes that only a
    checkpoint can fulfil, and as `plan_quantization` does.
    """
    for wish, is_set in {
        "--pre": wishes.pre,
        "--lora": wishes.adapters,
        "--remote": wishes.remote,
        "--allow-nonfinite": wishes.allow_nonfinite,
    }.items():
        if is_set:
            raise InputError(f"{file.path}: {wish} is for a checkpoint, and this is a GGUF file; leave it out")
    request = Request(wishes.guidance, allow_requantize=True, strict=wishes.strict)
    return [
        _with_note(plan_quantization(file, COPY if type == "auto" else type, wishes.options, request))
        for type in outtypes
    ]


def plan_from_gguf_to_size(file: GGUFFile, size: int, wishes: Wishes) -> Plan:
    """Plans the first of TARGET_TYPES whose file has at most `size` bytes. Raises InputError if there is none."""
    least: tuple[int, Plan] | None = None
    for outtype in TARGET_TYPES:
        try:
            (plan,) = plan_from_gguf(file, [outtype], wishes)
        except NeedsImportance:
            continue
        if (found := file_bytes(plan)) <= size:
            return plan
        least = min(least or (found, plan), (found, plan), key=lambda pair: pair[0])
    assert least
    raise InputError(
        f"{file.path}: no type fits {size:,} bytes; the smallest, {least[1].recipe.name}, takes {least[0]:,}: "
        f"ask for more" + ("" if wishes.guidance else ", or give --imatrix, which allows smaller types")
    )


def buffer_within(plans: Sequence[Plan], memory: int) -> int:
    """The size of the buffers with which writing takes at most `memory` bytes. Raises InputError if there is none."""
    least = estimate_memory(plans, 0)
    if memory < least:
        raise InputError(f"{memory:,} bytes of memory are not enough to convert this model; it takes {least:,}")
    return min(BUFFER_BYTES, memory - least)


def _with_note(plan: Plan) -> Plan:
    again = Counter(
        choice.tensor.type.name
        for choice in plan.choices
        if choice.type != choice.tensor.type and choice.tensor.type not in PLAIN
    )
    notes = [
        f"{count} tensors are {name} already and are quantized again; a file made from F16 or BF16 would be better"
        for name, count in again.items()
    ]
    return replace(plan, notes=[*plan.notes, *notes])
