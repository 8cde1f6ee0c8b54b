"""The same kernels compile for NVIDIA's GPUs; no GPU is needed for that."""

import pytest

from lltool.engine.gpu.device import kernel_source
from lltool.engine.gpu.planes import form_of
from lltool.gguf.ggml_types import GGMLType

SOURCES = {
    "all but products": kernel_source(["elementwise", "attention", "experts"], {"HEAD_DIM": 128}),
    "f16": kernel_source(["weights", "linear"], {"FLOAT_BYTES": "2", "TOKENS": 8}),
} | {
    name: kernel_source(["weights", "linear"], {**form_of(GGMLType[name]).defines, "TOKENS": 1})
    for name in ("Q4_0", "Q5_1", "Q2_K", "Q6_K", "Q8_0", "IQ4_XS", "IQ3_S")
}


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["sm_75", "sm_90"])
def test_the_kernels_compile_for_cuda(architecture: str) -> None:
    from cuda.bindings import nvrtc

    for name, source in SOURCES.items():
        _, program = nvrtc.nvrtcCreateProgram(source.encode(), b"kernels.cu", 0, [], [])
        options = [f"--gpu-architecture={architecture}".encode()]
        (result,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        _, size = nvrtc.nvrtcGetProgramLogSize(program)
        log = b" " * size
        nvrtc.nvrtcGetProgramLog(program, log)
        assert result == nvrtc.nvrtcResult.NVRTC_SUCCESS, f"{name}: {log.decode()}"
        nvrtc.nvrtcDestroyProgram(program)
