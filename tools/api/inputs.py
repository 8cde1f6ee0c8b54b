"""What the library's functions take: names of models, texts in place of token ids; and how they warn."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from lltool.engine.inputs import whole_number
from lltool.eval.common.text import read_evaluation_text
from lltool.gguf.hub import find_model

Name: TypeAlias = str | PathLike[str]
"""A file, a folder with one model, or an id on the Hub such as "org/repo:Q4_K_M"."""

Ids: TypeAlias = Sequence[int] | NDArray[np.integer]
Prompt: TypeAlias = str | Ids
Messages: TypeAlias = Sequence[Mapping[str, Any]]
"""Each is {"role": "system" | "user" | "assistant", "content": text}."""
Tools: TypeAlias = Sequence[Mapping[str, Any] | Callable[..., Any]]
"""Functions with type hints and docstrings, or {"type": "function", "function": {"name": ..., "parameters": ...}}."""
Text: TypeAlias = str | PathLike[str] | Ids
"""A text; the file of one, as a path; or its token ids."""


def warn(note: str) -> None:
    """Warns of what the commands print as a note. It is attributed to the line that called the library."""
    warnings.warn(note, UserWarning, stacklevel=3)


def find(name: Name) -> Path:
    return find_model(name)


def read_prompts(
    prompts: "Prompt | Sequence[Prompt]", encode: Callable[[str], list[int]]
) -> tuple[list[list[int]], bool]:
    """The token ids of each prompt, and whether it was one and not a list of them."""
    if isinstance(prompts, str):
        return [encode(prompts)], True
    if len(prompts) and isinstance(prompts[0], (int, np.integer)):
        return [_ids(cast(Ids, prompts))], True
    many = cast("Sequence[Prompt]", prompts)
    return [encode(prompt) if isinstance(prompt, str) else _ids(prompt) for prompt in many], False


def read_text(text: Text) -> str | list[int]:
    """The text of a file, or what was given."""
    if isinstance(text, PathLike):
        return read_evaluation_text(Path(text))
    return text if isinstance(text, str) else _ids(text)


def name_of(text: Text | None) -> str:
    """What messages call a text."""
    return str(text) if isinstance(text, PathLike) else "text"


def _ids(ids: Ids) -> list[int]:
    """Raises TypeError for what is not a whole number. Their range is checked against the model's vocabulary later."""
    return [whole_number("token id", id) for id in ids]
