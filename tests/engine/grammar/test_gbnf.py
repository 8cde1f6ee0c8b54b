"""GBNF: what is read, what is refused, and which texts the grammars accept."""

import re
from pathlib import Path

import numpy as np
import pytest

from lltool.engine.grammar.compiler import MOST_BYTES, GrammarCompiler
from lltool.engine.grammar.constraint import Constraint
from lltool.engine.grammar.gbnf import Characters, Reference, Repeated, TokenLiteral, read_gbnf
from lltool.engine.grammar.matcher import Matcher
from lltool.engine.text.tokenizer import Tokenizer
from lltool.gguf.errors import InputError
from lltool.quant.convert.vocabulary import read_vocabulary
from tests.engine.grammar.grammars import GRAMMARS
from tests.tiny_tokenizers import TOKENIZERS


def find_token(text: str) -> int:
    if text == "<none>":
        raise InputError("no such token")
    return int(text[2:-2]) if text.startswith("<[") else len(text)


def one(char: str) -> Characters:
    return Characters(((ord(char), ord(char)),))


@pytest.fixture(scope="module", params=["llama3", "spm"])
def compiler(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> GrammarCompiler:
    folder = tmp_path_factory.mktemp("vocabulary")
    tokenizer = Tokenizer.from_gguf(read_vocabulary(folder, TOKENIZERS[request.param](folder), 400).metadata())
    return GrammarCompiler(tokenizer, 400)


def accepts(compiler: GrammarCompiler, matcher: Matcher, text: str) -> bool:
    ids = compiler.vocabulary.native.greedy_tokenize(text)
    if matcher.validate(ids) < len(ids):
        return False
    for id in ids:
        matcher.accept(id)
    return matcher.may_end


def test_all_constructs_are_read() -> None:
    text = """
    # a comment
    root ::= "a\\n" [^a-c\\]\\x41] . ( x | "" )* <[7]> !<tok> # another
    x ::=
      Y{2,} [-a] | [a-]
    Y ::= "é"{3}"""
    assert read_gbnf(text.replace("\n    ", "\n").strip(), find_token) == {
        "root": (
            (
                one("a"),
                one("\n"),
                Characters(((97, 99), (93, 93), (65, 65)), is_negated=True),
                Characters((), is_negated=True),
                Repeated((Reference("root_1"),), 0, None),
                TokenLiteral(7),
                TokenLiteral(5, is_negated=True),
            ),
        ),
        "root_1": ((Reference("x"),), ()),
        "x": (
            (Repeated((Reference("Y"),), 2, None), Characters(((45, 45), (97, 97)))),
            (Characters(((97, 97), (45, 45))),),
        ),
        "Y": ((Repeated((one("é"),), 3, 3),),),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no rule 'root'"),
        ('x ::= "a"', "no rule 'root'"),
        ("root ::= x", "rule 'root': no rule 'x'"),
        ('root ::= ("a" | x)', "rule 'root': no rule 'x'"),
        ('root := "a"', "line 1, column 6: wanted '::=', found ':= \"a\"'"),
        ('root ::= "a', "wanted the end of the text in quotes or brackets, found ''"),
        ('root ::= "a" "b', "line 1, column 16"),
        ("root ::= [a", "wanted the end of the text in quotes or brackets"),
        ("root ::= []", "wanted a character in the brackets"),
        ("root ::= [^]", "wanted a character in the brackets"),
        ("root ::= [z-a]", "line 1, column 13: wanted a character that is not before 'z', found 'a]'"),
        ('root ::= "\\q"', "wanted an escape"),
        ('root ::= "\\x4"', "wanted 2 hexadecimal digits"),
        ('root ::= "\\ud83d"', "U+D83D is none"),
        ('root ::= "\\U00110000"', "U+110000 is none"),
        ("root ::= *", "wanted something to repeat before it, found '*'"),
        ("root ::= | +", "wanted something to repeat before it"),
        ('root ::= "a"{', "wanted a number below 1000000000, found ''"),
        ('root ::= "a"{2', "wanted '}', found ''"),
        ('root ::= "a"{3,2}', "wanted at least 3 as the upper bound, found 2"),
        ('root ::= "a"{9999999999}', "wanted a number below 1000000000"),
        ('root ::= ("a"', "wanted ')', found ''"),
        ('root ::= "a" )', "wanted the end of the line, found ')'"),
        ("root ::= " + "(" * 101, "wanted at most 100 groups in groups"),
        ("root ::= <none>", "line 1, column 10: no such token"),
        ("root ::= <none", "wanted '>' after the text of a token"),
        ("root ::= <[x]>", "wanted the id of a token below 1000000000"),
        ("root ::= <[1>", "wanted ']>', found '>'"),
        ('root ::= root "a" | "b"', "rule 'root' can begin with itself (left recursion)"),
        ('root ::= "x" a\na ::= b* c\nb ::= "b"\nc ::= a', "rule 'a' can begin with itself"),
        ('root ::= x? y\nx ::= "x"\ny ::= z{0,3} root\nz ::= ', "rule 'root' can begin with itself"),
        ('root ::= ("a"? root)', "rule 'root' can begin with itself"),
        ('root ::= "a" \n| "b"', "line 2, column 1: wanted the name of a rule"),
    ],
)
def test_mistakes_are_named(text: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        read_gbnf(text, find_token)


def test_long_chains_of_rules_need_no_recursion() -> None:
    rules = read_gbnf(
        "root ::= a0\n" + "".join(f"a{i} ::= a{i + 1}\n" for i in range(5000)) + 'a5000 ::= "x"', find_token
    )
    assert len(rules) == 5002
    with pytest.raises(InputError, match="left recursion"):
        read_gbnf("root ::= a0\n" + "".join(f"a{i} ::= a{i + 1}\n" for i in range(5000)) + "a5000 ::= root", find_token)


@pytest.mark.parametrize(
    ("name", "accepted", "rejected"),
    [
        ("prefixes", ["a", "ab", "abc", "abcd"], ["", "abcde", "b"]),
        ("empty alternative", ["ac", "abc"], ["a", "abbc"]),
        ("empty text", ["", "a", "aaa"], ["b"]),
        ("at least", ["xxxy", "xxxxxy"], ["xxy", "xxx"]),
        ("at most", ["", "abc def"], ["abcdefgh"]),
        ("none", ["c"], ["ac", "bc"]),
        ("repeated repetition", ["cccc", "aaacccc", "bbbcccc"], ["ccc", "aaaacccc"]),
        ("literal as a whole", ["the the end", "the the the end"], ["the end", "thethe end"]),
        ("ambiguous", ["zzz1", "abcx7", "abc1"], ["abx7", "abc"]),
        ("greedy trap", ["end", "endend", "xend"], ["endx"]),
        ("greedy digits", ["1234", "123456"], ["123"]),
        ("palindromes", ["", "a", "abba", "ababa"], ["ab", "abab"]),
        ("hexadecimal", ["Aé😀1", "Aé😀αω"], ["Aé😀", "Aé1"]),
        ("brackets", ["]-ax.", "a--b."], ["]-a].", "xa-b."]),
        ("any", ["x\n😀|", "abc||\n", "ab|"], ["a|", "abcd|"]),
        ("names", ["Aa01"], ["aA01", "Aa10"]),
        ("redefined", ["newy"], ["old", "oldy"]),
        ("groups", ["ae", "bcef", "fg"], ["a", "e"]),
    ],
)  # fmt: skip
def test_texts(compiler: GrammarCompiler, name: str, accepted: list[str], rejected: list[str]) -> None:
    matcher = compiler.matcher(Constraint.grammar(GRAMMARS[name]))
    assert [text for text in accepted if not accepts(compiler, matcher.fork(), text)] == []
    assert [text for text in rejected if accepts(compiler, matcher.fork(), text)] == []


def allowed(matcher: Matcher) -> set[int]:
    mask = matcher.allowed()
    assert mask is not None
    return set(np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist())


def test_control_tokens_are_never_text_and_can_be_named(compiler: GrammarCompiler) -> None:
    tokenizer = compiler.vocabulary.tokenizer
    controls = {id for id in range(tokenizer.size) if tokenizer.is_control(id)}
    ends = set(tokenizer.end_of_generation)
    assert controls & allowed(compiler.matcher(Constraint.grammar("root ::= .+"))) == set()
    (other, *_) = controls - ends
    name = tokenizer.tokens[other]
    for text in (f"<[{other}]>", name):
        matcher = compiler.matcher(Constraint.grammar(f'root ::= {text} "x"'))
        assert allowed(matcher) == {other}
        matcher.accept(other)
        assert other not in allowed(matcher)
    everything = allowed(compiler.matcher(Constraint.grammar(f"root ::= !<[{other}]>")))
    assert everything == {*range(400)} - {other} - ends - {*compiler.vocabulary.silent}


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("<[400]>", "token <[400]>, wanted one from 0 to 399"),
        ("<the quick>", "<the quick> is not one token of the vocabulary"),
    ],
)
def test_unknown_tokens(compiler: GrammarCompiler, token: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        compiler.matcher(Constraint.grammar(f"root ::= {token}"))


def test_a_token_that_ends_the_text_is_refused(compiler: GrammarCompiler) -> None:
    (end, *_) = compiler.vocabulary.tokenizer.end_of_generation
    with pytest.raises(InputError, match="ends the text"):
        compiler.matcher(Constraint.grammar(f"root ::= <[{end}]>"))


def test_the_text_ends_only_where_the_grammar_is_complete(compiler: GrammarCompiler) -> None:
    ends = set(compiler.vocabulary.tokenizer.end_of_generation)
    matcher = compiler.matcher(Constraint.grammar('root ::= "ab" "c"*'))
    for id in compiler.vocabulary.native.greedy_tokenize("a"):
        matcher.accept(id)
    assert not matcher.may_end
    assert not ends & allowed(matcher)
    for id in compiler.vocabulary.native.greedy_tokenize("b"):
        matcher.accept(id)
    assert matcher.may_end
    assert ends <= allowed(matcher)
    assert not matcher.is_complete


HOSTILE = {
    "exponential": "root ::= a0\n" + "".join(f"a{i} ::= a{i + 1} a{i + 1}\n" for i in range(200)) + 'a200 ::= "x" | ""',
    "nested repetitions": 'root ::= ((((("a"{0,1000}){0,1000}){0,1000}){0,1000}){0,1000}){0,1000}',
    "large bounds": 'root ::= "a"{0,999999999} "b"{999999999}',
    "many stars": 'root ::= "a"' + "*" * 15_000,
    "long chain": "root ::= a0\n" + "".join(f"a{i} ::= a{i + 1}\n" for i in range(9000)) + 'a9000 ::= "x"',
    "long literal": 'root ::= "' + "a" * 19_000 + '"',
    "too long": 'root ::= "' + "a" * MOST_BYTES["gbnf"] + '"',
    "too many characters": 'root ::= "' + "a" * 20_001 + '"',
    "ambiguous": "root ::= ([a-z]* [a-z]* [a-z]*)*",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_grammars_end_in_a_matcher_or_an_error(compiler: GrammarCompiler, name: str) -> None:
    message = "fine"
    try:
        matcher = compiler.matcher(Constraint.grammar(HOSTILE[name]))
        for _ in range(4):
            if next_ids := allowed(matcher) - compiler.vocabulary.tokenizer.end_of_generation:
                matcher.accept(max(next_ids))
    except InputError as error:
        message = str(error)
    assert "\n" not in message
    assert len(message) < 500


def test_vocabularies_without_text_are_refused(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_gguf(read_vocabulary(tmp_path, TOKENIZERS["llama3"](tmp_path), 400).metadata())
    with pytest.raises(InputError, match="no token with a text"):
        _ = GrammarCompiler(tokenizer, 0).vocabulary
