"""WordPiece vocabularies, as BERT has them, as objects of the `tokenizers` library."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lltool.gguf.errors import InputError
from lltool.gguf.regular_file import read_bytes

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CONTINUES = "##"
"""What vocab.txt puts before the text of a token that continues a word."""
WORD_START = "▁"
"""What GGUF puts before the text of a token that begins a word; a token that continues one has no mark there."""
MAX_WORD = 100
"""Longer words, in characters, are unknown."""


def build_wordpiece(
    vocabulary: Mapping[str, int],
    unknown: str,
    *,
    lowercase: bool = True,
    strip_accents: bool | None = None,
    splits_chinese: bool = True,
) -> "Tokenizer":
    """BERT's tokenizer without added tokens. `strip_accents` is by default as `lowercase`."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    model = models.WordPiece(dict(vocabulary), unk_token=unknown, max_input_chars_per_word=MAX_WORD)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=splits_chinese, strip_accents=strip_accents, lowercase=lowercase
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=CONTINUES)
    return tokenizer


def read_vocabulary_lines(file: Path) -> dict[str, int]:
    """The ids of a vocab.txt, by token: one a line, where the last of equal ones counts."""
    try:
        text = read_bytes(file).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read as text: {error}") from None
    lines = text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n")
    return {line: id for id, line in enumerate(lines)}


def from_vocabulary_lines(file: Path, settings: Mapping[str, Any], unknown: str) -> "Tokenizer":
    """The tokenizer of a vocab.txt, with the `settings` of tokenizer_config.json."""
    vocabulary = read_vocabulary_lines(file)
    if unknown not in vocabulary:
        raise InputError(f"{file}: has no token {unknown!r:.60} for unknown words, so it is no WordPiece vocabulary")
    return build_wordpiece(vocabulary, unknown, **_read_settings(file.parent, settings))


def apply_settings(path: Path, tokenizer: "Tokenizer", settings: Mapping[str, Any], notes: list[str]) -> None:
    """Gives a tokenizer.json's BertNormalizer what tokenizer_config.json states, as transformers 5 does."""
    stated = _read_settings(path, settings)
    normalizer: Any = tokenizer.normalizer
    if type(normalizer).__name__ != "BertNormalizer":
        return
    names = {"lowercase": "lowercase", "strip_accents": "strip_accents", "splits_chinese": "handle_chinese_chars"}
    for key, value in stated.items():
        before = getattr(normalizer, names[key])
        if value == before:
            continue
        setattr(normalizer, names[key], value)
        notes.append(
            f"{path / 'tokenizer_config.json'}: {_SETTINGS[key]} is {str(value).lower()}, but {names[key]} is "
            f"{str(before).lower()} in tokenizer.json; the former is used, as transformers 5 does"
        )


_SETTINGS = {"lowercase": "do_lower_case", "strip_accents": "strip_accents", "splits_chinese": "tokenize_chinese_chars"}


def _read_settings(path: Path, settings: Mapping[str, Any]) -> dict[str, bool]:
    """The arguments of `build_wordpiece` that are stated. Raises InputError for a value that is not true or false."""
    stated = {}
    for name, key in _SETTINGS.items():
        found = settings.get(key)
        if found is not None and type(found) is not bool:
            raise InputError(f"{path / 'tokenizer_config.json'}: {key}: found {found!r:.80}, wanted true or false")
        if found is not None:
            stated[name] = found
    return stated
