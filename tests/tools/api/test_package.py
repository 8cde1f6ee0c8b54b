"""The root of the package: its names agree, it imports nothing before a name is used, and it starts fast."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lltool

TEMPLATE = Path(__file__).resolve().parents[3] / "tools" / "api" / "package.py.in"


def test_the_names_for_editors_and_those_at_run_time_are_the_same() -> None:
    tree = ast.parse(TEMPLATE.read_text())
    typed: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lltool"):
            typed |= {str(alias.asname): f"{node.module}:{alias.name}" for alias in node.names}
    assert typed == lltool._PLACES
    assert set(lltool.__all__) == {*typed, "__version__"}
    assert lltool.__all__ == sorted(lltool.__all__)
    for name, place in typed.items():
        assert getattr(lltool, name) is getattr(sys.modules[place.split(":")[0]], place.split(":")[1])
    assert set(lltool.__all__) <= set(dir(lltool))


def test_the_installed_root_is_the_template_with_the_version() -> None:
    assert lltool.__file__
    installed = Path(lltool.__file__).read_text()
    assert installed.strip() == TEMPLATE.read_text().replace("${version}", lltool.__version__).strip()
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", lltool.__version__)


def test_unknown_names() -> None:
    with pytest.raises(AttributeError, match="module 'lltool' has no attribute 'laod'"):
        lltool.laod  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'laod'"):
        from lltool import laod  # type: ignore[attr-defined]  # noqa: F401


def test_importing_it_imports_nothing_else() -> None:
    """Modules of the standard library do not count: the hook of an editable install imports some."""
    code = "import sys; before = set(sys.modules); import lltool; new = set(sys.modules) - before; "
    code += "print([name for name in new if name.split('.')[0] not in sys.stdlib_module_names])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "['lltool']\n"


def test_everything_public_is_documented() -> None:
    for name in lltool.__all__:
        assert (getattr(lltool, name).__doc__ or "").strip(), name
    for owner in (lltool.Model, lltool.Stream, lltool.BenchResult):
        for name, method in vars(owner).items():
            if not name.startswith("_") and callable(method):
                assert (method.__doc__ or "").strip(), f"{owner.__name__}.{name}"
