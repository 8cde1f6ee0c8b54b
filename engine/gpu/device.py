"""What a device offers, whatever drives it: memory, and kernels in the dialect of kernels/portable.h."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Argument = Any  # memory of the device, np.int32, np.float32, or None for no memory
Launch = Callable[[], None]


@dataclass(frozen=True)
class DeviceInfo:
    """A device as `lltool devices` lists it."""

    id: str  # as --device takes it: opencl:0
    name: str
    driver: str
    memory: int  # bytes
    is_gpu: bool


class Device(Protocol):
    """A device that one thread uses. Launches run in the order in which they were made."""

    info: DeviceInfo

    def allocate(self, size: int) -> Any:
        """Memory of `size` bytes, all zero. Raises InputError if the device has too little."""

    def upload(self, memory: Any, array: NDArray[Any], offset: int = 0) -> None:
        """Copies an array to the device, from byte `offset` on."""

    def download(self, memory: Any, array: NDArray[Any], offset: int = 0) -> None:
        """Waits for all launches, and copies from the device, from byte `offset` on."""

    def copy(self, memory: Any, source: int, target: int, size: int) -> None:
        """Copies `size` bytes within memory."""

    def prepare(
        self, source: str, kernel: str, groups: Sequence[int], items: Sequence[int], arguments: Sequence[Argument]
    ) -> Launch:
        """A function that runs a kernel of `source` with these arguments, `groups` times `items` work items.

        Raises InputError if the source does not compile; the compiler's messages are kept in a file.
        """

    def close(self) -> None:
        """Frees all memory."""


@cache
def _read(name: str) -> str:
    return (Path(__file__).parent / "kernels" / f"{name}.h").read_text(encoding="utf-8")


def kernel_source(parts: Sequence[str], defines: Mapping[str, str | int]) -> str:
    """The source of some files of kernels/, after macros."""
    lines = [f"#define {name} {value}" for name, value in sorted(defines.items())]
    return "\n".join([*lines, _read("portable"), *(_read(part) for part in parts)])


def integer(value: int) -> np.int32:
    """An argument of type int."""
    assert -(2**31) <= value < 2**31
    return np.int32(value)
