"""Where the layers of a model run: which device, and how many of the last layers are on it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from lltool.engine.batch import PAGE
from lltool.engine.gpu.device import DeviceInfo
from lltool.engine.gpu.executor import HEAD_ROWS, GpuExecutor, check_program
from lltool.engine.gpu.memory import ITEM_BYTES
from lltool.engine.gpu.opencl import OpenCLDevice, find_devices
from lltool.engine.gpu.planes import form_of
from lltool.engine.gpu.split import SplitExecutor, cut_before_last
from lltool.engine.program import Program, Rows, Weight
from lltool.engine.state import StateLayout
from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import LAYOUT

if TYPE_CHECKING:
    from lltool.engine.executor import Executor
    from lltool.engine.executors import Setup

Layers = int | Literal["auto", "all"]
RESERVE = 0.9  # the share of a device's memory that `auto` fills


@dataclass(frozen=True)
class Placement:
    """`layers` of the model, and what makes logits of the last one, on a device (None: the first GPU)."""

    layers: Layers
    device: str | None = None


def choose_device(wanted: str | None = None) -> DeviceInfo | None:
    """The device of this name, else the first GPU; None if there is no GPU. Raises InputError for an unknown name."""
    devices = find_devices()
    if wanted is None:
        return next((device for device in devices if device.is_gpu), None)
    for device in devices:
        if device.id == wanted:
            return device
    names = ", ".join(device.id for device in devices) or "none; an OpenCL driver and 'lltool[opencl]' are needed"
    raise InputError(f"--device {wanted}: no such device; found: {names}")


def make_placed(
    program: Program, setup: "Setup", placement: Placement, make_rest: Callable[[Program, "Setup"], "Executor"]
) -> "Executor":
    """The executor of a placed program; `make_rest` makes that of the layers that stay on the CPU.

    Raises InputError if there is no GPU, it has no kernel for an operation, or the layers do not fit into its memory.
    """
    info = choose_device(placement.device)
    if info is None:
        raise InputError("no GPU was found; `lltool devices` lists devices, and --device names one of them")
    check_program(program)
    blocks = len(program.stages) - 1
    layers = placement.layers
    if layers == "auto":
        layers = count_fitting(program, setup, info.memory)
    if layers == 0:
        return make_rest(program, setup)
    device = OpenCLDevice(int(info.id.partition(":")[2]))

    def make_gpu(part: Program) -> GpuExecutor:
        return GpuExecutor(
            part,
            setup.pages,
            device,
            max_batch=setup.batch,
            precision=setup.precision,
            cache_type_k=setup.cache_type_k,
            cache_type_v=setup.cache_type_v,
            threads=setup.threads.batch.threads,
        )

    if layers == "all" or layers >= blocks:
        return make_gpu(program)
    return SplitExecutor(program, cut_before_last(program, layers), lambda part: make_rest(part, setup), make_gpu)


def count_fitting(program: Program, setup: "Setup", memory: int) -> int:
    """How many of the last layers, with the head, fit into so many bytes."""
    blocks = len(program.stages) - 1
    for layers in range(blocks, 0, -1):
        part = program if layers == blocks else _last(program, layers)
        if device_bytes(part, setup) <= memory * RESERVE:
            return layers
    return 0


def _last(program: Program, layers: int) -> Program:
    start = program.stages[len(program.stages) - 1 - layers][0]
    return replace(program, ops=program.ops[start:])


def device_bytes(program: Program, setup: "Setup") -> int:
    """The memory that a program takes on a device: matrices, cache and activations."""
    matrices = {name for op in program.ops for name in op.multiplied}
    weights = sum(_weight_bytes(program.weights[name]) for name in matrices)
    types = (setup.cache_type_k, setup.cache_type_v)
    cache = 0
    for kv in StateLayout.of(program).key_values:
        key, value = (ITEM_BYTES.get(type, 4) for type in types)
        cache += kv.heads * (kv.key_dim * key + (0 if kv.value_is_key else kv.value_dim * value))
    most = {Rows.SELECTED: min(HEAD_ROWS, setup.batch)}
    arena = sum(4 * width * most.get(kind, setup.batch) for kind, width in program.arena_widths.items())
    return weights + cache * setup.pages * PAGE + arena + 4 * program.logits.width * min(HEAD_ROWS, setup.batch)


def _weight_bytes(weight: Weight) -> int:
    if LAYOUT[weight.type].block == 1:
        return weight.data.nbytes
    return int(weight.rows * weight.columns * form_of(weight.type).bits_per_weight / 8)
