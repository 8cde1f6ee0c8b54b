"""Short names of things that are shown together."""

from collections.abc import Sequence
from pathlib import PurePath


def short_names(names: Sequence[str], marks: str = "-.") -> list[str]:
    """The parts, between `marks`, in which names of files differ: Q4_0 and Q8_0 for m-Q4_0.gguf and m-Q8_0.gguf."""
    stems = [base_name(name).removesuffix(".gguf") for name in names]
    first, last = min(stems, default=""), max(stems, default="")  # a prefix of both is a prefix of all
    shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    cut = max(first.rfind(mark, 0, shared) for mark in marks) + 1
    for shorter in ([stem[cut:] for stem in stems], stems):
        if all(shorter) and len(set(shorter)) == len(shorter):
            return shorter
    return list(names)


def base_name(path: str) -> str:
    """The name of a file without its folder, in a path of any system."""
    return PurePath(path.replace("\\", "/")).name
