"""The shape of the package: imports point one way, and the command starts light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
# Each folder may import itself and those before it.
ORDER = ["gguf", "quant", "engine", "eval", "tools"]
HEAVY = ["torch", "transformers", "pandas", "matplotlib", "numpy", "huggingface_hub", "tokenizers"]


def imported_modules(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


@pytest.mark.parametrize("folder", ORDER)
def test_imports_point_one_way(folder: str) -> None:
    paths = sorted((REPOSITORY / folder).rglob("*.py"))
    assert paths
    allowed = ORDER[: ORDER.index(folder) + 1]
    for path in paths:
        ours = {name.split(".")[1] for name in imported_modules(path) if name.startswith("lltool.")}
        wrong = ours.intersection(ORDER).difference(allowed)
        assert not wrong, f"{path.relative_to(REPOSITORY)} imports from {', '.join(sorted(wrong))}"


@pytest.mark.parametrize("folder", ORDER)
def test_folders_are_namespace_packages(folder: str) -> None:
    """gguf/__init__.py would shadow PyPI's gguf for whoever works at the repository's root."""
    assert not list((REPOSITORY / folder).rglob("__init__.py"))


def test_pypi_gguf_is_found_from_the_root() -> None:
    pytest.importorskip("gguf.quants")
    code = "import gguf; gguf.GGUFReader"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


def test_command_starts_light() -> None:
    code = f"import sys, lltool.tools.cli as c; c.main(['--help']); sys.exit(str(set({HEAVY}) & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stderr.strip() == "set()"
    assert "quantize" in run.stdout


def test_only_the_common_figure_knows_matplotlib() -> None:
    paths = [path for folder in ORDER for path in (REPOSITORY / folder).rglob("*.py")]
    found = {path.name for path in paths if any(name.startswith("matplotlib") for name in imported_modules(path))}
    assert found == {"figure.py"}
