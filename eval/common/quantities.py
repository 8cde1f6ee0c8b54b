"""Sizes, numbers and percentages as commands read and print them; each form has one meaning everywhere."""

import re

from lltool.gguf.errors import InputError

SIZES = "a bare number is bytes, K, M, G, T are steps of 1000, Ki, Mi, Gi, Ti of 1024"  # for the help of commands
_STEPS = {"K": 1, "M": 2, "G": 3, "T": 4}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT])(I?)B?|(\d+) ?B?", re.IGNORECASE | re.ASCII)


def parse_size(text: str) -> int:
    """The bytes of `8GB` (8 * 10^9), `8GiB` (8 * 2^30), `1.5M` or `943718400`. Raises InputError for anything else."""
    size = 0
    if found := _SIZE.fullmatch(text):
        number, prefix, binary, whole = found.groups()
        size = int(whole) if whole else int(float(number) * (1024 if binary else 1000) ** _STEPS[prefix.upper()])
    if size < 1:
        raise InputError(f"{text!r} is not a size such as 500MB or 1.2GiB ({SIZES})")
    return size


def parse_percent(text: str) -> float:
    """The fraction of `5%`, `5` or `2.5`: a number is in percent with or without the sign. Raises InputError."""
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = -1.0
    if not 0 <= value < 100:
        raise InputError(f"{text!r} is not a percentage such as 5% or 5")
    return value / 100


def format_size(size: int) -> str:
    """Bytes as all commands print them, in llama-bench's form: `1.20 GiB`, `117.73 MiB`, below that `12,345 bytes`."""
    if size < 1 << 20:
        return f"{size:,} bytes"
    return f"{size / (1 << 30):.2f} GiB" if size >= 1 << 30 else f"{size / (1 << 20):.2f} MiB"


def format_count(count: int) -> str:
    """A number of weights, in llama-bench's form: `1.24 B` for 1.24 * 10^9, below that `134.52 M`."""
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.2f} M"
