"""A model's vocabulary as llguidance reads it: the bytes of each token, and how text is divided into tokens."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from lltool.engine.text.tokenizer import Tokenizer
from lltool.gguf.errors import InputError
from lltool.gguf.optional import require
from lltool.quant.convert.sentencepiece_model import TokenType

if TYPE_CHECKING:
    from llguidance import LLTokenizer


class GrammarVocabulary:
    """The tokens of logits (`size`,) as llguidance has them (`native`).

    A text is made of the ordinary, byte and user-defined tokens; control tokens have no text, so that a constraint can
    only ask for them by name. Raises InputError without llguidance, and for a vocabulary without texts.
    """

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        require("llguidance", "a constraint on what is generated")
        from llguidance import LLTokenizer

        self.tokenizer, self.size = tokenizer, size
        wrapper = _Wrapper(tokenizer, size)
        self.silent = [id for id, piece in enumerate(wrapper.tokens) if not piece]
        if len(self.silent) == size:
            raise InputError("the vocabulary has no token with a text, so that no grammar can be followed")
        self.ends = sorted(id for id in tokenizer.end_of_generation if id < size)
        self.native: LLTokenizer = LLTokenizer(wrapper, eos_token=self.ends or None)  # type: ignore[arg-type]  # it is one by its fields
        wrapper.greedy = self.native

    @property
    def words(self) -> int:
        """The number of words of a mask of the logits."""
        return -(-self.size // 32)

    def find_token(self, text: str) -> int:
        """The id of a token as GBNF names it: `<[7]>` or `<text>`. Raises InputError if there is none."""
        if text.startswith("<["):
            id = int(text[2:-2])
            if id >= self.size:
                raise InputError(f"token {text}, wanted one from 0 to {self.size - 1}")
        else:
            ids = self.tokenizer.encode(text, add_special=False, parse_special=True)
            if len(ids) != 1:
                raise InputError(f"{text} is not one token of the vocabulary, but {len(ids)}")
            (id,) = ids
        if id in self.ends:
            raise InputError(f"token {text} ends the text, so that it cannot be part of it")
        return id


class _Wrapper:
    """What llguidance asks of a tokenizer."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self.tokens = [_piece(tokenizer, id) for id in range(min(size, tokenizer.size))]
        self.tokens += [b""] * (size - len(self.tokens))
        self.special_token_ids = [id for id in range(min(size, tokenizer.size)) if tokenizer.is_control(id)]
        ends = [id for id in sorted(tokenizer.end_of_generation) if id < size]
        self.eos_token_id = ends[0] if ends else None
        self.greedy: LLTokenizer | None = None
        self._tokenizer = replace(tokenizer, add_space_prefix=False)

    def __call__(self, text: str) -> list[int]:
        """The tokens into which the model was trained to see `text` divided, which stands within a text.

        Where the tokenizer would change the text, the longest tokens from the left.
        """
        wanted = text.encode()
        try:
            for ids in self._divisions(text):
                if b"".join(self.tokens[id] for id in ids) == wanted:
                    return list(ids)
        except (InputError, IndexError):
            pass
        assert self.greedy is not None
        return self.greedy.greedy_tokenize(text)

    def _divisions(self, text: str) -> Sequence[Sequence[int]]:
        return [self._tokenizer.encode(text, add_special=False), self._tokenizer.kind.encode_plain([text])[0]]


def _piece(tokenizer: Tokenizer, id: int) -> bytes:
    return b"" if int(tokenizer.types[id]) == TokenType.UNUSED else tokenizer.piece(id)
