"""Devices that an OpenCL driver offers: GPUs of every maker, and CPUs through PoCL."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lltool.engine.gpu.device import Argument, DeviceInfo, Launch
from lltool.gguf.errors import InputError
from lltool.gguf.optional import require
from lltool.gguf.watched import keep_guard
from lltool.gguf.whole_file import whole_file

_SMALLER = "ask for fewer layers (-ngl) or a smaller context (-c)"
BUILD_LOG = Path.home() / ".cache" / "lltool" / "gpu-build.log"


@cache
def find_devices() -> list[DeviceInfo]:
    """The devices of all drivers, GPUs first; none if pyopencl or a driver is missing."""
    try:
        return [
            DeviceInfo(
                f"opencl:{index}",
                device.name.strip(),
                device.platform.name.strip(),
                device.global_mem_size,
                _is_gpu(device),
            )
            for index, device in enumerate(_devices())
        ]
    except InputError:
        return []


def _devices() -> list[Any]:
    """The driver's devices. Raises InputError if there is no driver."""
    require("pyopencl", "--device opencl")
    import pyopencl as cl

    try:
        found = [device for platform in cl.get_platforms() for device in platform.get_devices()]
    except cl.Error as error:
        raise InputError(
            f"OpenCL has no driver here ({error}); install the driver of the GPU's maker, or PoCL to run on the CPU"
        ) from None
    return sorted(found, key=lambda device: not _is_gpu(device))


def _is_gpu(device: Any) -> bool:
    import pyopencl as cl

    return bool(device.type & cl.device_type.GPU)


class OpenCLDevice:
    """A device with one command queue."""

    def __init__(self, index: int) -> None:
        devices = _devices()
        import pyopencl as cl

        self._cl = cl
        if index >= len(devices):
            raise InputError(f"opencl:{index}: no such device; {len(devices)} found, see lltool devices")
        self._device = devices[index]
        self.info = find_devices()[index]
        self._context = cl.Context([self._device])
        self._queue = cl.CommandQueue(self._context)
        keep_guard()  # drivers built on LLVM install handlers of their own
        self._programs: dict[str, Any] = {}
        self._memories: list[Any] = []

    def allocate(self, size: int) -> Any:
        cl, size = self._cl, max(size, 4)
        if size > self._device.max_mem_alloc_size:
            raise InputError(
                f"{self.info.name}: one allocation of {size / 2**20:.0f} MiB is wanted, and the device allows "
                f"{self._device.max_mem_alloc_size / 2**20:.0f} MiB; {_SMALLER}"
            )
        try:
            memory = cl.Buffer(self._context, cl.mem_flags.READ_WRITE, size)
            cl.enqueue_fill_buffer(self._queue, memory, np.uint8(0), 0, size)
            self._queue.finish()
        except cl.Error as error:
            raise InputError(
                f"{self.info.name}: {size / 2**20:.0f} MiB could not be allocated ({error}); {_SMALLER}"
            ) from None
        self._memories.append(memory)
        return memory

    def upload(self, memory: Any, array: NDArray[Any], offset: int = 0) -> None:
        if array.size:
            data = np.ascontiguousarray(array)
            self._cl.enqueue_copy(self._queue, memory, data, dst_offset=offset)

    def download(self, memory: Any, array: NDArray[Any], offset: int = 0) -> None:
        if array.size:
            self._cl.enqueue_copy(self._queue, array, memory, src_offset=offset)

    def copy(self, memory: Any, source: int, target: int, size: int) -> None:
        self._cl.enqueue_copy(self._queue, memory, memory, byte_count=size, src_offset=source, dst_offset=target)

    def prepare(
        self, source: str, kernel: str, groups: Sequence[int], items: Sequence[int], arguments: Sequence[Argument]
    ) -> Launch:
        cl = self._cl
        made = cl.Kernel(self._build(source), kernel)
        made.set_args(*arguments)
        size = tuple(group * item for group, item in zip(groups, items, strict=True))
        local, queue = tuple(items), self._queue

        def launch() -> None:
            cl.enqueue_nd_range_kernel(queue, made, size, local)

        return launch

    def _build(self, source: str) -> Any:
        if source not in self._programs:
            try:
                self._programs[source] = self._cl.Program(self._context, source).build(["-cl-std=CL1.2"])
            except self._cl.Error as error:
                BUILD_LOG.parent.mkdir(parents=True, exist_ok=True)
                with whole_file(BUILD_LOG) as file:
                    file.write_text(f"{error}\n\n{source}", encoding="utf-8")
                raise InputError(
                    f"{self.info.name}: the driver could not compile a kernel; its messages are in {BUILD_LOG}"
                ) from None
        return self._programs[source]

    def close(self) -> None:
        self._queue.finish()
        for memory in self._memories:
            memory.release()
        self._memories = []
        self._programs = {}
