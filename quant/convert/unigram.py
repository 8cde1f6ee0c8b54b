"""SentencePiece's Unigram vocabularies, as T5 and XLM-R have them, as objects of the `tokenizers` library."""

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lltool.gguf.errors import InputError
from lltool.quant.convert.sentencepiece_model import SentencePieceModel, TokenType

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPACE = "▁"
_IN_TEXT = (TokenType.NORMAL, TokenType.BYTE, TokenType.USER_DEFINED)


def build_unigram(
    tokens: Sequence[str],
    scores: Sequence[float],
    types: Sequence[int],
    unknown: int,
    *,
    charsmap: bytes = b"",
    merges_spaces: bool,
    splits_words: bool = False,
    adds_space: bool,
) -> "Tokenizer":
    """A Unigram tokenizer without added tokens; `scores` are logarithms of probabilities.

    `charsmap` is SentencePiece's precompiled map of characters. With `merges_spaces`, a run of spaces counts as one
    and those at the ends of a text count for nothing, with `splits_words` so does all white space; with `adds_space` a
    text gets a space in front. Control, unknown and unused
    tokens do not result from text. Raises InputError for a map that is none.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    is_text = [type in _IN_TEXT for type in types]
    pieces = [
        (text, score) if is_piece else (_placeholder(id), 0.0)
        for id, (text, score, is_piece) in enumerate(zip(tokens, scores, is_text, strict=True))
    ]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=unknown, byte_fallback=TokenType.BYTE in types))
    steps: list[Any] = [_precompiled(charsmap)] if charsmap else []
    if merges_spaces and not splits_words:
        steps += [normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), " ")]
    if steps:
        tokenizer.normalizer = normalizers.Sequence(steps)
    scheme = "always" if adds_space else "never"
    metaspace = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=scheme, split=merges_spaces)
    words = [pre_tokenizers.WhitespaceSplit()] if splits_words else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*words, metaspace])
    tokenizer.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme=scheme)
    return tokenizer


def _precompiled(charsmap: bytes) -> Any:
    """The normalizer of a precompiled map, made from JSON, whose reader raises ValueError and not a bare Exception."""
    from tokenizers import Tokenizer

    normalizer = {"type": "Precompiled", "precompiled_charsmap": b64encode(charsmap).decode()}
    model = {"type": "WordLevel", "vocab": {}, "unk_token": ""}
    try:
        return Tokenizer.from_buffer(json.dumps({"normalizer": normalizer, "model": model}).encode()).normalizer
    except ValueError as error:
        raise InputError(f"precompiled_charsmap: not SentencePiece's map of characters: {error}") from None


def _placeholder(id: int) -> str:
    """A text that no text contains: it starts with two noncharacters."""
    return f"\U0010ffff\U0010ffff{id}"


def from_sentencepiece(file: Path, model: SentencePieceModel, name: str, settings: Mapping[str, Any]) -> "Tokenizer":
    """The tokenizer of a Unigram model file as transformers makes it for the tokenizer class `name`, "" if unknown.

    Raises InputError for a model without a token for unknown text, and for settings of a wrong type.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    pieces = [(_utf8(text), score) for text, score in zip(model.pieces, model.scores, strict=True)]
    types = list(model.types)
    if TokenType.UNKNOWN not in types:
        raise InputError(f"{file}: has no token for unknown characters")
    before: list[str] = []
    after: list[str] = []
    if name == "T5Tokenizer":
        count = settings.get("extra_ids", 100)
        if type(count) is not int or not 0 <= count < _MAX_EXTRA:
            raise InputError(f"{file.parent / 'tokenizer_config.json'}: extra_ids: found {count!r:.40}, wanted a count")
        new = [f"<extra_id_{i}>" for i in range(count - 1, -1, -1)]
        pieces, types, after = pieces + [(t, 0.0) for t in new], types + [TokenType.CONTROL] * count, ["</s>"]
    elif name == "XLMRobertaTokenizer":  # fairseq's order of ids
        special = ["<s>", "<pad>", "</s>", "<unk>"]
        first = [TokenType.CONTROL] * 3 + [TokenType.UNKNOWN]
        pieces = [*((text, 0.0) for text in special), *pieces[3:], ("<mask>", 0.0)]
        types, before, after = [*first, *types[3:], TokenType.CONTROL], ["<s>"], ["</s>"]
    elif name == "AlbertTokenizer":
        before, after = ["[CLS]"], ["[SEP]"]
    has_bytes = types.count(TokenType.BYTE) == 256
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=types.index(TokenType.UNKNOWN), byte_fallback=has_bytes))
    steps: list[Any] = _albert_steps(settings) if name == "AlbertTokenizer" else []
    steps += [_precompiled(model.charsmap)] if model.charsmap else []
    if model.remove_extra_whitespaces:
        steps += [normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), " ")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    scheme = "always" if model.add_space_prefix else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=scheme, split=False)
    added = [
        AddedToken(text, normalized=False, special=type == TokenType.CONTROL)
        for (text, _), type in zip(pieces, types, strict=True)
        if type in (TokenType.CONTROL, TokenType.USER_DEFINED)
    ]
    tokenizer.add_tokens(added)
    ids = {text: id for id, (text, _) in enumerate(pieces)}
    if all(text in ids for text in before + after):
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after], special_tokens=[(text, ids[text]) for text in {*before, *after}]
        )
    return tokenizer


_MAX_EXTRA = 1 << 16


def _albert_steps(settings: Mapping[str, Any]) -> list[Any]:
    from tokenizers import normalizers

    steps: list[Any] = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    if not settings.get("keep_accents", False):
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
    if settings.get("do_lower_case", True):
        steps.append(normalizers.Lowercase())
    return steps


def _utf8(piece: str) -> str:
    return piece.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
