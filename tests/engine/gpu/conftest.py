"""The device that these tests run on: an OpenCL driver for the CPU, or a GPU where there is one."""

from collections.abc import Iterator

import pytest

from lltool.engine.gpu.device import Device
from lltool.engine.gpu.opencl import OpenCLDevice, find_devices


@pytest.fixture(scope="session")
def device_name() -> str:
    found = find_devices()
    if not found:
        pytest.skip("needs pyopencl and an OpenCL driver")
    return found[0].id


@pytest.fixture
def device(device_name: str) -> Iterator[Device]:
    made = OpenCLDevice(int(device_name.partition(":")[2]))
    yield made
    made.close()
