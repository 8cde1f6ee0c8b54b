"""The executors by name, and the settings that they are created with."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lltool.engine.batch import PAGE, CacheType, Precision
from lltool.engine.cpu.threads import Threads
from lltool.engine.executor import Executor
from lltool.engine.program import Program
from lltool.gguf.errors import InputError

if TYPE_CHECKING:
    from lltool.engine.gpu.placement import Placement


@dataclass(frozen=True)
class Setup:
    """The settings that an executor is created with."""

    pages: int
    batch: int
    threads: Threads
    precision: Precision
    cache_type_k: CacheType
    cache_type_v: CacheType
    deterministic: bool = False
    instruction_set: str | None = None  # None: the one that the process has chosen
    slots: int = 0  # for states of fixed size, checkpoints included
    placement: "Placement | None" = None  # which layers run on a GPU


def _make_reference(program: Program, setup: Setup) -> Executor:
    from lltool.engine.reference.executor import ReferenceExecutor

    return ReferenceExecutor(
        program, setup.pages, slots=setup.slots, cache_type_k=setup.cache_type_k, cache_type_v=setup.cache_type_v
    )


def _make_cpu(program: Program, setup: Setup) -> Executor:
    from lltool.engine.cpu.executor import CpuExecutor

    return CpuExecutor(
        program,
        setup.pages,
        slots=setup.slots,
        max_batch=setup.batch,
        threads=setup.threads,
        precision=setup.precision,
        cache_type_k=setup.cache_type_k,
        cache_type_v=setup.cache_type_v,
        deterministic=setup.deterministic,
        instruction_set=setup.instruction_set,
    )


EXECUTORS: dict[str, Callable[[Program, Setup], Executor]] = {"cpu": _make_cpu, "reference": _make_reference}


def make_executor(kind: str, program: Program, setup: Setup) -> Executor:
    """Creates an executor of EXECUTORS; with a placement, it has the layers that do not run on the GPU.

    Raises InputError if it cannot run the program, or memory is short.
    """
    if setup.pages < 2**31:  # page numbers in a batch are int32
        with suppress(MemoryError):
            if setup.placement is None:
                return EXECUTORS[kind](program, setup)
            from lltool.engine.gpu.placement import make_placed

            return make_placed(program, replace(setup, placement=None), setup.placement, EXECUTORS[kind])
    raise InputError(f"a cache of {setup.pages * PAGE} tokens does not fit in memory; ask for a smaller context")
