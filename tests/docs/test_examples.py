"""The console examples of README and manual print what the pages show, and both languages show the same ones."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.docs.examples import REPOSITORY, Example, difference, read_examples, read_programs, run
from tests.docs.workshop import Workshop

DOCS = REPOSITORY / "docs"
ENGLISH = [REPOSITORY / "README.md", *sorted((DOCS / "en").rglob("*.md"))]


def name(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


@pytest.fixture(scope="session")
def workshop(real_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(real_model("smollm2-q4_1"), tmp_path_factory.mktemp("workshop"))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", [page for page in ENGLISH if read_examples(page)], ids=name)
def test_examples_print_what_the_page_shows(page: Path, workshop: Workshop, tmp_path: Path) -> None:
    workshop.furnish(tmp_path)
    for example in read_examples(page):
        printed = run(example.command, tmp_path)
        assert difference(example, printed) is None, f"$ {example.command}\n{printed}"


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in ENGLISH[1:] if read_programs(page)], ids=name)
def test_programs_run(page: Path, workshop: Workshop, tmp_path: Path) -> None:
    workshop.furnish(tmp_path)
    for number, program in enumerate(read_programs(page)):
        (tmp_path / f"program{number}.py").write_text(program)
        assert "Tokyo" in run(f"python program{number}.py", tmp_path)


@pytest.mark.parametrize("page", ENGLISH[1:], ids=name)
def test_the_chinese_page_has_the_same_examples(page: Path) -> None:
    chinese = DOCS / "zh" / page.relative_to(DOCS / "en")
    assert read_examples(chinese) == read_examples(page)
    assert read_programs(chinese) == read_programs(page)


SHOWN = ["model size =    256.63 MiB", "...", "smol ... wrote"]


@pytest.mark.parametrize(
    ("printed", "vary", "found"),
    [
        ("model size = 250.1 MiB\nmore\nsmol 17 wrote", False, None),
        ("model size = 200.1 MiB\nsmol 17 wrote", False, "line 1 of the output"),
        ("model size = 200.1 MiB\nsmol 17 wrote", True, None),
        ("model size = 256.63 GiB\nsmol 17 wrote", True, "line 1 of the output"),
        ("model size = 256.63 MiB\nsmol 17", True, "line 3 of the output"),
        ("model size = 256.63 MiB\nsmol 17 wrote\nmore", True, "more is printed"),
    ],
)
def test_what_counts_as_the_same(printed: str, vary: bool, found: str | None) -> None:
    departs = difference(Example("", SHOWN, vary), printed)
    assert departs is None if found is None else departs is not None and departs.startswith(found)
