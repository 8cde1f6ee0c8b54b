import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lltool.engine.cpu import _native as engine_native
from lltool.quant import _native

REPOSITORY = Path(__file__).resolve().parents[2]
# The instruction sets of a kind of processor, best first, with the words of /proc/cpuinfo that they need.
X86 = {
    "avx512": {"avx2", "fma", "bmi2", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"},
    "avx2": {"avx2", "fma", "bmi2"},
    "scalar": set[str](),
}
ARM = {"neon_dot": {"asimddp"}, "neon": {"asimd"}, "scalar": set[str]()}
NEEDS = {"x86_64": X86, "AMD64": X86, "aarch64": ARM, "arm64": ARM}[platform.machine()]


def test_scalar_code_runs_everywhere() -> None:
    assert _native.available_isas()[-1] == "scalar"


def test_a_build_has_every_instruction_set() -> None:
    """Checks the vocabulary that each table was compiled with, so that no missing set goes unnoticed."""
    assert _native.built_isas() == engine_native.built_isas() == list(NEEDS)
    assert engine_native.available_isas() == _native.available_isas()


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="needs Linux")
def test_the_best_available_instruction_set_is_used() -> None:
    words = set(Path("/proc/cpuinfo").read_text().split())
    assert _native.available_isas() == [name for name, needs in NEEDS.items() if needs <= words]


def test_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'mmx' is not one of .*scalar"):
        _native.select_isa("mmx")


@pytest.mark.parametrize(
    ("name", "outcome"), [("scalar", "scalar"), ("", _native.available_isas()[0]), ("mmx", "unset it or name one")]
)
def test_environment_names_the_instruction_set(name: str, outcome: str) -> None:
    code = "from lltool.quant import isa; print(isa.chosen())"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"LLTOOL_ISA": name}, check=False
    )
    assert outcome in run.stdout + run.stderr
    assert (run.returncode == 0) == (name != "mmx")


def test_no_code_is_shared_between_instruction_sets() -> None:
    """A weak symbol of an AVX-512 object could replace the same one of the scalar object, and crash older machines."""
    objects = sorted((REPOSITORY / "build").glob("CMakeFiles/*_native.dir/**/kernels_*.o"))
    if not objects or not shutil.which("nm"):
        pytest.skip("needs the build folder and nm")
    for path in objects:
        listing = subprocess.run(["nm", "-C", path], capture_output=True, text=True, check=True).stdout
        weak = [line for line in listing.splitlines() if line[17:18] in ("W", "V", "u")]
        assert not weak, (path.name, weak[:3])
