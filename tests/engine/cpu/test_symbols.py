"""Code compiled for one instruction set must not leak into the rest of the program through shared symbols."""

import shutil
import subprocess
from pathlib import Path

import pytest

OBJECTS = sorted((Path(__file__).parents[3] / "build").rglob("kernels_*.o"))


@pytest.mark.skipif(not OBJECTS or not shutil.which("nm"), reason="needs an editable install's build folder, and nm")
def test_kernels_export_nothing_but_their_table() -> None:
    """A weak (inline) function compiled with AVX-512 may be the one that the linker keeps for everybody."""
    for path in OBJECTS:
        lines = subprocess.run(["nm", "--defined-only", path], check=True, capture_output=True, text=True).stdout
        exported = [line.split()[-1] for line in lines.splitlines() if line.split()[-2] in "TVWDRBu"]
        isa = path.name.removeprefix("kernels_").removesuffix(".cpp.o")
        assert len(exported) == 1, (path, exported)
        assert exported[0].endswith(f"_{isa}E"), (path, exported)
