"""Checks a planned conversion against the engine, before anything is written."""

from collections.abc import Mapping
from pathlib import Path

from lltool.engine.models.architectures import check_runnable
from lltool.engine.text.tokenizer import Tokenizer
from lltool.engine.text.tokenizer_check import compare_tokenizers
from lltool.gguf.errors import InputError
from lltool.gguf.metadata import Value
from lltool.quant.convert.conversion import Conversion
from lltool.quant.convert.vocabulary import find_tokenizer


def check_conversion(conversion: Conversion) -> None:
    """Raises InputError for a model that the engine would refuse to load, or whose tokenizer is not the checkpoint's.

    The latter makes other ids of one of the hard texts than Hugging Face's library makes of the checkpoint's files.
    """
    try:
        check_runnable(conversion.model)
    except InputError as error:
        raise InputError(f"{conversion.checkpoint.path}: the model would not run: {error}") from None
    difference = find_token_difference(conversion.model.metadata, conversion.checkpoint.path)
    if difference:
        raise InputError(
            f"{difference}; the model would see other tokens than in training, so nothing is written: please report it"
        )


def find_token_difference(metadata: Mapping[str, Value], folder: Path) -> str | None:
    """The first text for which the tokenizers of a file and of a checkpoint's folder give other ids; None without."""
    path = find_tokenizer(folder)
    return None if path is None else compare_tokenizers(Tokenizer.from_gguf(metadata), path)
