"""A tokenizer that is stored whole, as the tokenizer.json of Hugging Face's library, because no keys can describe it.

The added tokens of the file are cut out of a text as for every vocabulary; the library encodes what is between them.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from lltool.engine.text import tokenizer_bpe, tokenizer_spm, tokenizer_wordpiece
from lltool.engine.text.vocabulary_keys import TokenizerKind, VocabularyKeys, encoder_of
from lltool.gguf.errors import InputError
from lltool.gguf.metadata import ValueType
from lltool.quant.convert.embedded import plain_tokenizer
from lltool.quant.convert.tokenizer_keys import EMBEDDED_KEY, EMBEDDED_MODEL, read_space_prefix

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BYTES: dict[str, Callable[[str, int], bytes]] = {
    "gpt2": tokenizer_bpe.bytes_of_token,
    "llama": tokenizer_spm.bytes_of_token,
    "bert": tokenizer_wordpiece.bytes_of_token,
    "t5": tokenizer_spm.bytes_of_token,
}


def read_embedded(keys: VocabularyKeys) -> TokenizerKind:
    """Raises InputError if the stored tokenizer.json is none that the `tokenizers` library can read."""
    name, value = keys.text("model"), keys.metadata[EMBEDDED_KEY]
    if value.type != ValueType.STRING:
        raise InputError(f"{EMBEDDED_KEY}: found {value.type.name}, wanted a string")
    if name not in (*_BYTES, EMBEDDED_MODEL):
        raise InputError(f"tokenizer.ggml.model: {name!r}, wanted one of {', '.join((*_BYTES, EMBEDDED_MODEL))}")
    tokenizer = _parse(value.data, read_space_prefix(keys.metadata) is None)
    bytes_of_token = _BYTES[name] if name in _BYTES else _bytes_by_decoder(tokenizer)
    encode, normalizer = encoder_of(tokenizer), tokenizer.normalizer
    sample = b"".join(bytes_of_token(keys.tokens[id], int(keys.types[id])) for id in encode(["a"])[0])
    return TokenizerKind(
        encode,
        bytes_of_token,
        drops_space=sample.startswith(b" "),
        add_space_prefix=False,
        normalize=normalizer.normalize_str if normalizer else None,
        is_lossless=normalizer is None and name in ("gpt2", "llama"),
    )


def _parse(text: str, puts_spaces: bool) -> "Tokenizer":
    try:
        return plain_tokenizer(text, puts_spaces=puts_spaces)
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{EMBEDDED_KEY}: not a tokenizer.json that `tokenizers` can read: {error}; "
            f"without it (`lltool set MODEL --remove {EMBEDDED_KEY}`), the tokenizer.ggml keys count"
        ) from None


def _bytes_by_decoder(tokenizer: "Tokenizer") -> Callable[[str, int], bytes]:
    """What a token adds to a text, for decoders that treat tokens one by one."""
    decoder = tokenizer.decoder

    def bytes_of_token(text: str, type: int) -> bytes:
        if decoder is None:
            return f" {text}".encode("utf-8", "surrogateescape")
        first: str = decoder.decode(["a"])
        both: str = decoder.decode(["a", text])
        return both.removeprefix(first).encode("utf-8", "surrogateescape")

    return bytes_of_token
