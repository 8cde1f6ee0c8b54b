"""Makes matchers of constraints: compiles each once, within limits of time and size."""

from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING

from lltool.engine.grammar.constraint import Constraint
from lltool.engine.grammar.gbnf import read_gbnf
from lltool.engine.grammar.gbnf_lark import write_lark
from lltool.engine.grammar.matcher import Matcher
from lltool.engine.grammar.vocabulary import GrammarVocabulary
from lltool.engine.text.tokenizer import Tokenizer
from lltool.gguf.errors import InputError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits

MOST_BYTES = 1 << 20
"""The longest grammar or schema, in bytes of UTF-8."""

_KEPT = 64  # compiled constraints that are kept for the next request
_NAMES = {"gbnf": "grammar", "lark": "Lark grammar", "json_schema": "JSON schema", "regex": "regular expression"}
# Between the parts of JSON, a space or a new line with its indent: a model cannot fill its answer with white space.
_WHITESPACE = r" |\r?\n[ \t]{0,40}"


class GrammarCompiler:
    """Compiles constraints for a vocabulary, whose logits are (`size`,), and keeps the last ones.

    Threads may share it.
    """

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self._tokenizer, self._size = tokenizer, size
        self._vocabulary: GrammarVocabulary | None = None
        self._kept: OrderedDict[tuple[str, str], LLMatcher] = OrderedDict()
        self._lock = Lock()

    def matcher(self, constraint: Constraint) -> Matcher:
        """A matcher for one text.

        Raises InputError, which names the constraint's part at fault, if it is malformed or too large, has something
        that cannot be honoured, or if the vocabulary lacks what it needs; and without the package llguidance.
        """
        key = constraint.kind, constraint.text
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = GrammarVocabulary(self._tokenizer, self._size)
            vocabulary = self._vocabulary
            if key in self._kept:
                self._kept.move_to_end(key)
                return Matcher(self._kept[key].deep_copy(), vocabulary, constraint.triggers)
        compiled = _compile(constraint, vocabulary)
        with self._lock:
            self._kept[key] = compiled
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return Matcher(compiled.deep_copy(), vocabulary, constraint.triggers)


def _compile(constraint: Constraint, vocabulary: GrammarVocabulary) -> "LLMatcher":
    from llguidance import LLMatcher

    name = _NAMES[constraint.kind]
    if (size := len(constraint.text.encode("utf-8", "surrogatepass"))) > MOST_BYTES:
        raise InputError(f"{name}: has {size} bytes, wanted at most {MOST_BYTES}")
    try:
        native = LLMatcher(vocabulary.native, _native_grammar(constraint, vocabulary), log_level=0, limits=_limits())
    except ValueError as error:
        raise InputError(f"{name}: {error}") from None
    if native.is_error():
        raise InputError(f"{name}: {_message(native.get_error())}")
    return native


def _native_grammar(constraint: Constraint, vocabulary: GrammarVocabulary) -> str:
    from llguidance import LLMatcher

    text = constraint.text
    if constraint.kind == "gbnf":
        rules = read_gbnf(text, vocabulary.find_token)
        return LLMatcher.grammar_from_lark(write_lark(rules, [*vocabulary.ends, *vocabulary.silent]))
    if constraint.kind == "json_schema":
        return LLMatcher.grammar_from_json_schema(text, defaults={"whitespace_pattern": _WHITESPACE})
    if constraint.kind == "regex":
        return LLMatcher.grammar_from_regex(text)
    return LLMatcher.grammar_from_lark(text)


def _limits() -> "LLParserLimits":
    from llguidance import LLParserLimits

    return LLParserLimits(verbose_errors=False)


def _message(text: str) -> str:
    """llguidance's own message on one line, without the parts that describe its state."""
    return text.partition("\n\n")[0].partition("<state>")[0].strip()
