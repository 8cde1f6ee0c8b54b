"""Packages that only some features use: an extra installs them, and one line names it where one is missing."""

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from lltool.gguf.errors import InputError

if TYPE_CHECKING:
    from pandas import DataFrame

# The extra of pyproject.toml that installs each package, by the name under which it is imported.
EXTRAS = {
    "matplotlib": "plot",
    "pandas": "pandas",
    "torch": "torch",
    "transformers": "torch",
    "accelerate": "verify",
    "sacrebleu": "generation",
    "bert_score": "bert-score",
    "lm_eval": "lm-eval",
    "uvicorn": "serve",
    "llguidance": "grammar",
    "pydantic": "grammar",
}


def require(package: str, purpose: str) -> None:
    """Raises InputError if a package of an extra is not installed. `purpose`, which wants it, begins the message."""
    extra = EXTRAS[package]
    if find_spec(package) is None:
        raise InputError(f"{purpose}: needs {package}, which is not installed; pip install 'lltool[{extra}]'")


def to_frame(data: Mapping[str, Any] | Iterable[Mapping[str, Any]]) -> "DataFrame":
    """A pandas DataFrame of columns by name, or with a row for each record. Raises InputError without pandas."""
    require("pandas", "to_pandas()")
    from pandas import DataFrame

    return DataFrame(data if isinstance(data, Mapping) else [dict(record) for record in data])
