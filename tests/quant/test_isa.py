import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lltool.quant import _native

REPOSITORY = Path(__file__).resolve().parents[2]


def test_scalar_code_runs_everywhere() -> None:
    assert _native.available_isas()[-1] == "scalar"


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
