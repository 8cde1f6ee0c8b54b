"""Converts text to token ids and back, as the metadata of a GGUF file defines it (the keys `tokenizer.ggml.*`)."""

import codecs
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from lltool.engine.text.added_tokens import AddedTokenCutter
from lltool.engine.text.fill_in_middle import ENDS, find_fill_in_middle
from lltool.engine.text.tokenizer_bpe import read_bpe
from lltool.engine.text.tokenizer_embedded import read_embedded
from lltool.engine.text.tokenizer_gemma4 import read_gemma4
from lltool.engine.text.tokenizer_rwkv import read_rwkv
from lltool.engine.text.tokenizer_spm import read_spm
from lltool.engine.text.tokenizer_unigram import read_unigram
from lltool.engine.text.tokenizer_wordpiece import read_wordpiece
from lltool.engine.text.vocabulary_keys import TokenizerKind, VocabularyKeys
from lltool.gguf.errors import InputError
from lltool.gguf.metadata import Value
from lltool.gguf.reader import GGUFFile
from lltool.quant.convert.sentencepiece_model import TokenType
from lltool.quant.convert.tokenizer_keys import EMBEDDED_KEY, read_end_ids, read_space_prefix

# The kinds of vocabularies by their name in `tokenizer.ggml.model`, with what reads them.
KINDS: dict[str, Callable[[VocabularyKeys], TokenizerKind]] = {
    "gpt2": read_bpe,
    "llama": read_spm,
    "gemma4": read_gemma4,
    "bert": read_wordpiece,
    "t5": read_unigram,
    "rwkv": read_rwkv,
}

# Types of tokens that are matched in text as a whole, before all others.
_SPECIAL = (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.USER_DEFINED)

# Tokens that end an answer even if the file does not say so: llama.cpp's list without `</s>`, which is HTML in Gemma's
# vocabulary; if `</s>` does end a text, the file says so.
_ENDS = """<|eot_id|> <|eom_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> <|endoftext|>
    <|end_of_text|> <EOT> _<EOT> [EOT] [EOS] <turn|> <eos> <end_of_utterance> <｜end▁of▁sentence｜> <|tool_response>
    [e~["""
_MESSAGE_ENDS = ({"<|return|>", "<|call|>"}, {"<|calls|>", "<|flush|>"})  # beside them, <|end|> ends only a message


@dataclass(frozen=True)
class Tokenizer:
    """A vocabulary and its rules for splitting text.

    `fill_in_middle` has the tokens for filling in a text, by name: pre, suf, mid, pad, rep and sep. `kind` is how plain
    text becomes ids.
    With `add_space_prefix`, a text and each text after a special token is encoded as if it began with a space.
    `cutter` splits text at special tokens if the file has lltool's own keys for that; None does it as llama.cpp does.
    """

    tokens: Sequence[str]
    types: NDArray[np.int32]  # (V,)
    bos: int | None
    eos: int | None
    eot: int | None
    sep: int | None
    add_bos: bool
    add_eos: bool
    add_sep: bool
    add_space_prefix: bool
    end_of_generation: frozenset[int]
    fill_in_middle: Mapping[str, int]
    kind: TokenizerKind
    cutter: AddedTokenCutter | None = None

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Value]) -> Self:
        """Raises InputError if the file has no tokenizer, or an unsupported or broken one."""
        keys = VocabularyKeys(metadata)
        kind, tokens, types = _read_kind(keys), keys.tokens, keys.types
        special = {
            tokens[id]: id
            for id in np.flatnonzero(np.isin(types, (TokenType.CONTROL, TokenType.USER_DEFINED))).tolist()
        }
        fill_in_middle = find_fill_in_middle(keys, special)
        ends = {special[text] for text in _ENDS.split() if text in special}
        ends.update(id for name, id in fill_in_middle.items() if name in ENDS)
        eos = keys.token("eos", kind.eos)
        stops = (eos, keys.token("eot"), keys.token("eom"), *read_end_ids(metadata, len(tokens)))
        ends.update(id for id in stops if id is not None)
        if any(names <= special.keys() for names in _MESSAGE_ENDS):
            ends.discard(special.get("<|end|>", -1))
        space_prefix = read_space_prefix(metadata)
        return cls(
            tokens=tokens,
            types=types,
            bos=keys.token("bos", kind.bos),
            eos=eos,
            eot=keys.token("eot"),
            sep=keys.token("seperator", kind.sep),
            add_bos=keys.flag("add_bos_token", kind.add_bos),
            add_eos=keys.flag("add_eos_token", kind.add_eos),
            add_sep=keys.flag("add_sep_token", kind.add_sep),
            add_space_prefix=kind.add_space_prefix,
            end_of_generation=frozenset(ends),
            fill_in_middle=fill_in_middle,
            kind=kind,
            cutter=None
            if keys.added is None
            else AddedTokenCutter(
                tokens,
                keys.added,
                normalize=kind.normalize,
                prefix=" " if kind.add_space_prefix and space_prefix is None else "",
                space_prefix=space_prefix,
            ),
        )

    @property
    def size(self) -> int:
        return len(self.tokens)

    def encode(
        self,
        text: str,
        *,
        add_special: bool = True,
        parse_special: bool = False,
        restore: Callable[[str], str] | None = None,
    ) -> list[int]:
        """The ids of `text`.

        `add_special` adds the begin, end and separator tokens that the model wants, but no second begin token.
        User-defined tokens are always matched in the text, control tokens such as `<|im_end|>` only with
        `parse_special`. `restore` is applied to the text between control tokens, which is not searched for them again.
        Raises InputError if plain text encodes to a control token while `restore` is given.
        """
        parts = self._partition(_valid(text), parse_special, restore)
        plain = iter(self.kind.encode_plain([part for part in parts if isinstance(part, str)]))
        ids: list[int] = []
        for part in parts:
            if isinstance(part, int):
                ids.append(part)
            else:
                ids.extend(next(plain))
        if restore is not None and (merged := self._control_ids.intersection(ids).difference(parts)):
            names = ", ".join(map(repr, sorted(self.tokens[id] for id in merged)))
            raise InputError(f"the tokenizer encodes plain text as control tokens ({names}); remove them from it")
        if not add_special:
            return ids
        # A separator is the end of a WordPiece text, and of other vocabularies stands between two texts.
        end = self.eos if self.add_eos else self.sep if self.add_sep else None
        return self.with_begin(ids) + ([] if end is None else [end])

    def with_begin(self, ids: list[int]) -> list[int]:
        """Puts the begin token before `ids` if the model wants it and they do not already begin with it."""
        wants = self.add_bos and self.bos is not None and ids[:1] != [self.bos]
        return [id for id in [self.bos] if wants and id is not None] + ids

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """The text of `ids`, without control tokens unless `special`; bytes that are not UTF-8 become U+FFFD."""
        decoder = StreamDecoder(self, special=special, drop_space=self.kind.drops_space)
        return "".join(map(decoder.push, ids)) + decoder.flush()

    def piece(self, id: int) -> bytes:
        """The bytes of one token; of a control token, its name. Raises InputError if the id is not a token."""
        if not 0 <= id < self.size:
            raise InputError(f"token {id}: the vocabulary has {self.size} tokens")
        text, type = self.tokens[id], int(self.types[id])
        if type in _SPECIAL:
            return text.encode("utf-8", "surrogateescape")
        return self.kind.bytes_of_token(text, type)

    def is_control(self, id: int) -> bool:
        """Whether a token is a signal to the model rather than text."""
        return int(self.types[id]) in (TokenType.UNKNOWN, TokenType.CONTROL)

    @cached_property
    def _special(self) -> list[tuple[str, int]]:
        """The texts and ids of the tokens that are matched before all others, longest first."""
        ids = np.flatnonzero(np.isin(self.types, _SPECIAL)).tolist()
        found = [(self.tokens[id], id) for id in ids if self.tokens[id]]
        return sorted(found, key=lambda item: -len(item[0].encode("utf-8", "surrogateescape")))

    @cached_property
    def _control_ids(self) -> frozenset[int]:
        return frozenset(np.flatnonzero(self.types == TokenType.CONTROL).tolist())

    @cached_property
    def control_texts(self) -> tuple[str, ...]:
        """The texts that `parse_special` reads as control tokens."""
        return tuple(text for text, _ in self.control_tokens())

    def control_tokens(self) -> list[tuple[str, int]]:
        """The texts and ids of the control tokens, the longest first."""
        return [(text, id) for text, id in self._special if self.is_control(id)]

    def _partition(
        self, text: str, parse_special: bool, restore: Callable[[str], str] | None = None
    ) -> list[str | int]:
        """The special tokens of `text` and the texts between them, with their leading spaces."""
        if self.cutter is not None:
            found = self.cutter.cut(text, lambda id: parse_special or int(self.types[id]) == TokenType.USER_DEFINED)
            # Restored text is not split again: a user-defined token that overlaps a control-like text is not matched.
            return [part if isinstance(part, int) or restore is None else restore(part) for part in found]
        parts = self._cut(text, parse_special)
        if restore is not None:
            pieces = [[part] if isinstance(part, int) else self._cut(restore(part), False) for part in parts]
            parts = [part for row in pieces for part in row]
        if self.add_space_prefix:
            follows_text = [False, *(isinstance(part, str) for part in parts)]
            return [
                part if isinstance(part, int) or after else " " + part
                for part, after in zip(parts, follows_text, strict=False)
            ]
        return parts

    def _cut(self, text: str, parse_special: bool) -> list[str | int]:
        """Splits `text` at special tokens: first at all matches of the longest, then the rest at the next one."""
        parts: list[str | int] = [text] if text else []
        letters = set(text)
        for token, id in self._special:
            if not letters.issuperset(token) or token not in text:
                continue
            if not parse_special and int(self.types[id]) != TokenType.USER_DEFINED:
                continue
            pieces: list[str | int] = []
            for part in parts:
                if isinstance(part, int) or token not in part:
                    pieces.append(part)
                    continue
                for i, between in enumerate(part.split(token)):
                    pieces.extend(([id] if i else []) + ([between] if between else []))
            parts = pieces
        return parts


class StreamDecoder:
    """Decodes tokens one at a time; it holds back a character until all its bytes have arrived.

    Control tokens give no text unless `special`, or what `signs` has for them; `drop_space` removes the space that
    encoding puts before a text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        special: bool = False,
        drop_space: bool = False,
        signs: Mapping[int, str] = MappingProxyType({}),
    ) -> None:
        self._tokenizer = tokenizer
        self._special, self._signs = special, signs
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._drop_space = drop_space

    def push(self, id: int) -> str:
        """Adds a token and returns the text that it completes."""
        if id in self._signs:
            return self._utf8.decode(b"", final=True) + self._signs[id]
        if not self._special and 0 <= id < self._tokenizer.size and self._tokenizer.is_control(id):
            return ""
        text = self._utf8.decode(self._tokenizer.piece(id))
        if self._drop_space and text:
            self._drop_space = False
            return text.removeprefix(" ")
        return text

    def flush(self) -> str:
        """Returns the rest: U+FFFD for a character that was not completed."""
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return text


def _read_kind(keys: VocabularyKeys) -> TokenizerKind:
    name = keys.text("model")
    if EMBEDDED_KEY in keys.metadata:
        return read_embedded(keys)
    if name not in KINDS:
        raise InputError(f"tokenizer.ggml.model: {name!r}, wanted one of {', '.join(KINDS)}")
    return KINDS[name](keys)


def read_tokenizer(file: GGUFFile) -> Tokenizer:
    """Reads the tokenizer of an open file. Raises InputError naming the file and the key."""
    try:
        return Tokenizer.from_gguf(file.metadata)
    except InputError as error:
        raise InputError(f"{file.path}: {error}") from None


def _valid(text: str) -> str:
    """`text` with surrogate pairs joined into characters and lone surrogates replaced by U+FFFD."""
    if re.search("[\ud800-\udfff]", text):
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
