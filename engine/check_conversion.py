"""Checks a planned conversion against the engine, before anything is written."""

from collections.abc import Mapping
from pathlib import Path

from lltool.engine.models.architectures import check_runnable
from lltool.engine.text.tokenizer import Tokenizer
from lltool.engine.text.tokenizer_check import compare_tokenizers
from lltool.gguf.errors import InputError
from lltool.gguf.metadata import Value
from lltool.quant.convert.conversion import Conversion


def check_conversion(conversion: Conversion) -> list[str]:
    """Notes on how the file's tokenizer differs from the checkpoint's, if the `tokenizers` library can read the latter.

    Raises InputError for a model that the engine would refuse to load.
    """
    try:
        check_runnable(conversion.model)
    except InputError as error:
        raise InputError(f"{conversion.checkpoint.path}: the model would not run: {error}") from None
    difference = find_token_difference(conversion.model.metadata, conversion.checkpoint.path)
    return [f"the tokenizer differs from the checkpoint's: {difference}"] if difference else []


def find_token_difference(metadata: Mapping[str, Value], folder: Path) -> str | None:
    """The first text for which the tokenizers of a file and of a checkpoint's folder give other ids; None without."""
    files = [folder / name for name in ("tokenizer.json", "vocab.json")]
    path = next((file for file in files if file.exists()), None)
    return None if path is None else compare_tokenizers(Tokenizer.from_gguf(metadata), path)
