"""Makes matchers of constraints: compiles each once, within limits of time and size."""

import re
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock, Thread, stack_size
from typing import TYPE_CHECKING, TypeVar

from lltool.engine.grammar.constraint import Constraint
from lltool.engine.grammar.gbnf import read_gbnf
from lltool.engine.grammar.gbnf_lark import write_lark
from lltool.engine.grammar.matcher import Matcher
from lltool.engine.grammar.structural import write_structural_lark
from lltool.engine.grammar.vocabulary import GrammarVocabulary
from lltool.engine.text.tokenizer import Tokenizer
from lltool.gguf.errors import InputError

if TYPE_CHECKING:
    from llguidance import LLMatcher
    from llguidance._lib import JsonCompileOptions

T = TypeVar("T")

MOST_BYTES = {"gbnf": 1 << 18, "lark": 1 << 16, "json_schema": 1 << 20, "regex": 1 << 16, "structural_tag": 1 << 16}
"""The longest text of each notation, in bytes of UTF-8: all of these sizes compile, or are refused, within a second."""

_KEPT = 64  # compiled constraints that are kept for the next request
_STACK = 512 << 20  # bytes, of which only what is used takes memory: llguidance follows chains of rules by recursion
_STARTING = Lock()  # the size of stacks is a setting of the process
_NAMES = {
    "gbnf": "grammar",
    "lark": "Lark grammar",
    "json_schema": "JSON schema",
    "regex": "regular expression",
    "structural_tag": "structural tag",
}
# Between the parts of JSON, a space or a new line with its indent: a model cannot fill its answer with white space.
_JSON: "JsonCompileOptions" = {"whitespace_pattern": r" |\r?\n[ \t]{0,40}"}


class GrammarCompiler:
    """Compiles constraints for a vocabulary, whose logits are (`size`,), and keeps the last ones.

    Threads may share it.
    """

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self._tokenizer, self._size = tokenizer, size
        self._vocabulary: GrammarVocabulary | None = None
        self._kept: OrderedDict[tuple[str, str], LLMatcher] = OrderedDict()
        self._lock = Lock()

    @property
    def vocabulary(self) -> GrammarVocabulary:
        """The vocabulary. Raises InputError without the package llguidance, and if no token has a text."""
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = GrammarVocabulary(self._tokenizer, self._size)
            return self._vocabulary

    def matcher(self, constraint: Constraint) -> Matcher:
        """A matcher for one text.

        Raises InputError, which names the constraint's part at fault, if it is malformed or too large, has something
        that cannot be honoured, or if the vocabulary lacks what it needs; and without the package llguidance.
        """
        key, vocabulary = (constraint.kind, constraint.text), self.vocabulary
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return Matcher(self._kept[key].deep_copy(), vocabulary, constraint.triggers)
        compiled = self._compile(constraint, vocabulary)
        with self._lock:
            self._kept[key] = compiled
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return Matcher(compiled.deep_copy(), vocabulary, constraint.triggers)

    def _compile(self, constraint: Constraint, vocabulary: GrammarVocabulary) -> "LLMatcher":
        from llguidance import LLMatcher, LLParserLimits

        name, most = _NAMES[constraint.kind], MOST_BYTES[constraint.kind]
        if (size := len(constraint.text.encode("utf-8", "surrogatepass"))) > most:
            raise InputError(f"{name}: has {size} bytes, wanted at most {most}")
        try:
            text = _native_grammar(constraint, vocabulary)
        except ValueError as error:
            raise InputError(f"{name}: {error}") from None

        def build() -> LLMatcher:
            native = LLMatcher(vocabulary.native, text, log_level=0, limits=LLParserLimits(verbose_errors=False))
            if not native.is_error():
                native.compute_bitmask()  # finds what no text can satisfy
            return native

        native = self._run_deep(build)
        problem = _message(native.get_error())
        if problem == "NoExtensionBias" or (not problem and native.is_stopped() and not native.is_accepting()):
            raise InputError(f"{name}: no text satisfies it")
        if problem:
            raise InputError(f"{name}: {problem}")
        return native

    def _run_deep(self, do: Callable[[], T]) -> T:
        """Calls `do` in a thread with a large stack. Raises InputError if there is no room for one."""
        results: list[T] = []
        thread = Thread(target=lambda: results.append(do()), name="lltool grammar")
        with _STARTING:
            usual = stack_size(_STACK)
            try:
                thread.start()
            except RuntimeError as error:
                raise InputError(f"a grammar needs {_STACK >> 20} MiB of address space to compile: {error}") from None
            finally:
                stack_size(usual)
        thread.join()
        (result,) = results
        return result


def _native_grammar(constraint: Constraint, vocabulary: GrammarVocabulary) -> str:
    from llguidance import LLMatcher

    text = constraint.text
    if constraint.kind == "gbnf":
        rules = read_gbnf(text, vocabulary.find_token)
        return LLMatcher.grammar_from_lark(write_lark(rules, [*vocabulary.ends, *vocabulary.silent]))
    if constraint.kind == "json_schema":
        return LLMatcher.grammar_from_json_schema(text, defaults=_JSON)
    if constraint.kind == "regex":
        return LLMatcher.grammar_from_regex(text)
    if constraint.kind == "structural_tag":
        return LLMatcher.grammar_from_lark(write_structural_lark(text, vocabulary, _JSON))
    return LLMatcher.grammar_from_lark(text)


def _message(text: str) -> str:
    """llguidance's own message, without the grammar that it repeats, and what it knows of itself."""
    if text.startswith("panic"):
        return "is too large"
    text = re.sub(r'"(?:[^"\\\\]|\\\\.){80,}"', '"..."', text)
    lines = [line for line in text.splitlines() if line.strip() and not re.match(r"\s*(\d+ \||\^)", line)]
    return " ".join(" ".join(lines).replace("<non-verbose/>", "").split())[:300]
