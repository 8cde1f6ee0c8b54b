"""Checks a planned conversion against the engine, before anything is written."""

from lltool.engine.models.architectures import check_runnable
from lltool.engine.text.tokenizer import Tokenizer
from lltool.engine.text.tokenizer_check import compare_tokenizers
from lltool.gguf.errors import InputError
from lltool.quant.convert.conversion import Conversion


def check_conversion(conversion: Conversion) -> list[str]:
    """Notes on how the file's tokenizer differs from the checkpoint's, if the `tokenizers` library can read the latter.

    Raises InputError for a model that the engine would refuse to load.
    """
    try:
        check_runnable(conversion.model)
    except InputError as error:
        raise InputError(f"{conversion.checkpoint.path}: the model would not run: {error}") from None
    files = [conversion.checkpoint.path / name for name in ("tokenizer.json", "vocab.json")]
    path = next((file for file in files if file.exists()), None)
    if path is None:
        return []
    difference = compare_tokenizers(Tokenizer.from_gguf(conversion.model.metadata), path)
    return [f"the tokenizer differs from the checkpoint's: {difference}"] if difference else []
