"""The console examples of README and manual: finds them, runs them in order, compares what they print, or writes it.

    python -m tests.docs.examples docs/en/choosing.md

puts what the commands print today into a page, and its examples into the Chinese page of the same name.

An example is a fenced block of the language `console`: lines with `$ ` are commands, the others what they print, on
either stream. A line `...` stands for any lines, `...` within a line for any text. Numbers may differ by a tenth;
after a comment `<!-- numbers vary -->` before the block they may be any.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
VARY = "<!-- numbers vary -->"
_BLOCK = re.compile(rf"^(?P<vary>{re.escape(VARY)}\n)?```console\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
_NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")


@dataclass(frozen=True)
class Example:
    """A command of a page, the lines that it should print, and whether their numbers may be any."""

    command: str
    output: list[str]
    numbers_vary: bool


def read_examples(page: Path) -> list[Example]:
    return [example for block in _BLOCK.finditer(page.read_text()) for example in _examples_of(block)]


def _examples_of(block: re.Match[str]) -> Iterator[Example]:
    parts = re.split(r"^\$ ", block["body"], flags=re.MULTILINE)
    assert not parts[0], f"a console block begins with a command, not with {parts[0]!r}"
    for part in parts[1:]:
        command, *output = part.rstrip("\n").split("\n")
        while command.endswith("\\"):
            command += "\n" + output.pop(0)
        yield Example(command, output, bool(block["vary"]))


def read_programs(page: Path) -> list[str]:
    """The examples in Python of a page."""
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def run(command: str, folder: Path) -> str:
    """Runs a command in a shell, in which `lltool` is the one of this environment; returns all that it prints."""
    binaries = Path(sys.executable).parent
    shell = ["bash", "-o", "pipefail", "-c", f'PATH="{binaries}:$PATH"; {command}']
    done = subprocess.run(shell, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600)
    text = done.stdout.decode()
    assert "Traceback" not in text, text
    return text


def difference(example: Example, printed: str) -> str | None:
    """The first line in which what was printed departs from the example; None if none does."""
    found = [line.rstrip() for line in printed.rstrip("\n").split("\n")]
    wanted = list(example.output)
    skips = False
    for number, line in enumerate(wanted):
        if line.strip() == "...":
            skips = True
            continue
        while found and skips and not _same(line, found[0], example.numbers_vary):
            found.pop(0)
        if not found or not _same(line, found[0], example.numbers_vary):
            return f"line {number + 1} of the output: wanted {line!r}, found {found[0] if found else 'no more lines'!r}"
        found.pop(0)
        skips = False
    if found and any(found) and not skips:
        return f"more is printed than shown: {found[0]!r}"
    return None


def _same(wanted: str, found: str, numbers_vary: bool) -> bool:
    parts = [re.escape(part) for part in _NUMBER.sub("\0", " ".join(wanted.split())).split("...")]
    pattern = ".*".join(parts).replace(re.escape("\0"), f"({_NUMBER.pattern})")
    match = re.fullmatch(pattern, " ".join(found.split()))
    if match is None:
        return False
    pairs = zip(_NUMBER.findall(" ".join(wanted.split())), match.groups(), strict=True)
    return numbers_vary or all(_close(_value(a), _value(b)) for a, b in pairs)


def _value(text: str) -> float:
    return float(text.replace(",", ""))


def _close(wanted: float, found: float) -> bool:
    return abs(wanted - found) <= 0.1 * abs(wanted) + 1e-12


def update(page: Path, folder: Path) -> None:
    """Replaces the output of each example of a page by what its command prints; lines that it leaves out stay out."""
    page.write_text(_BLOCK.sub(partial(_updated, folder=folder), page.read_text()))


def _updated(block: re.Match[str], folder: Path) -> str:
    lines = []
    for example in _examples_of(block):
        printed = run(example.command, folder).rstrip("\n").split("\n")
        lines += [f"$ {example.command}", *(_shown(example.output, printed) if example.output else printed)]
    return (block["vary"] or "") + "```console\n" + "\n".join(line for line in lines if line) + "\n```"


def _shown(output: list[str], printed: list[str]) -> list[str]:
    """The lines of `output`, each with the numbers of the printed line that has its words. Raises if there is none."""
    shown, rest = [], iter(printed)
    for line in output:
        if "..." in line:
            shown.append(line)
            continue
        found = next((candidate for candidate in rest if _same(line, candidate, True)), None)
        if found is None:
            raise SystemExit(f"nothing like {line!r} in\n" + "\n".join(printed))
        shown.append(found.rstrip())
    return shown


def copy_examples(page: Path, other: Path) -> None:
    """Replaces the examples of another page, in order, by those of a page."""
    blocks = iter([block[0] for block in _BLOCK.finditer(page.read_text())])
    other.write_text(_BLOCK.sub(lambda _: next(blocks), other.read_text()))


def main(pages: list[str]) -> None:
    from tempfile import TemporaryDirectory

    from lltool.eval.common.sample_models import fetch_sample
    from tests.docs.workshop import Workshop

    workshop = Workshop(fetch_sample("smollm2-q4_1", REPOSITORY / ".cache/models"), REPOSITORY / ".cache/workshop")
    for page in pages:
        with TemporaryDirectory(dir=REPOSITORY / ".cache") as folder:
            workshop.furnish(Path(folder))
            update(Path(page), Path(folder))
        if "docs/en/" in page:
            copy_examples(Path(page), Path(page.replace("docs/en/", "docs/zh/")))


if __name__ == "__main__":
    main(sys.argv[1:])
