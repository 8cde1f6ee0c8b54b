"""The options that name LoRA adapters, with llama.cpp's spellings."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Adapters = list[tuple[Path, float]]


def add_adapter_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --lora and --lora-scaled, which add to `lora` in the order in which they are given."""
    group = parser.add_argument_group("adapters")
    group.add_argument(
        "--lora",
        action=_Add,
        default=[],
        metavar="FILE[,FILE...]",
        help="LoRA adapters to apply, as `lltool convert ADAPTER_DIR` or llama.cpp makes them; can be given again",
    )
    group.add_argument(
        "--lora-scaled",
        action=_AddScaled,
        dest="lora",
        default=[],
        metavar="FILE:SCALE[,...]",
        help="the same with scales; `FILE SCALE` is accepted too",
    )


class _Add(argparse.Action):
    takes_scale = False

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        before: Adapters = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [*before, *self._read(str(values).split(","))])

    def _read(self, parts: Sequence[str]) -> Adapters:
        if not all(parts):
            raise argparse.ArgumentError(self, "lacks the name of a file")
        return [(Path(part), 1.0) for part in parts]


class _AddScaled(_Add):
    takes_scale = True  # as a word of its own, which the parser joins to the file's name

    def _read(self, parts: Sequence[str]) -> Adapters:
        found: Adapters = []
        for part in parts:
            name, _, scale = part.rpartition(":")
            if not name or not is_number(scale):
                raise argparse.ArgumentError(self, f"{part!r}, wanted a file and its scale, FILE:SCALE")
            found.append((Path(name), float(scale)))
        return found


def is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
