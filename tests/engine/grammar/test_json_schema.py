"""JSON schemas: what the package jsonschema accepts is accepted, what it rejects is rejected."""

import json
from collections.abc import Iterator
from datetime import datetime, time
from typing import Any

import pytest
from jsonschema import Draft202012Validator, FormatChecker

from lltool.engine.grammar.compiler import GrammarCompiler
from lltool.engine.grammar.constraint import Constraint
from lltool.engine.grammar.matcher import Matcher
from lltool.engine.text.tokenizer import Tokenizer
from lltool.gguf.errors import InputError
from lltool.quant.convert.vocabulary import read_vocabulary
from tests.engine.grammar.schemas import UNSUPPORTED, schemas
from tests.tiny_tokenizers import TOKENIZERS

FORMS: list[dict[str, Any]] = [{}, {"indent": 2}, {"separators": (",", ":")}, {"indent": 4, "separators": (",", ": ")}]

formats = FormatChecker(("date", "uuid", "ipv4", "email"))


@formats.checks("time", ValueError)
def is_time(text: object) -> bool:
    return not isinstance(text, str) or time.fromisoformat(text) is not None


@formats.checks("date-time", ValueError)
def is_date_time(text: object) -> bool:
    return not isinstance(text, str) or (datetime.fromisoformat(text) is not None and "T" in text)


@pytest.fixture(scope="module", params=["llama3", "spm"])
def compiler(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> GrammarCompiler:
    folder = tmp_path_factory.mktemp("vocabulary")
    tokenizer = Tokenizer.from_gguf(read_vocabulary(folder, TOKENIZERS[request.param](folder), 400).metadata())
    return GrammarCompiler(tokenizer, 400)


def tokens_of(compiler: GrammarCompiler, text: str) -> list[int]:
    """One of the ways to write a text in tokens, which need not be the usual one: a byte or the longest token each."""
    return compiler.vocabulary.native.greedy_tokenize(text)


def accepts(matcher: Matcher, ids: list[int]) -> bool:
    if matcher.validate(ids) < len(ids):
        return False
    for id in ids:
        matcher.accept(id)
    return matcher.may_end


def verdicts(compiler: GrammarCompiler) -> Iterator[tuple[dict[str, Any], str, bool, bool]]:
    """Each schema and text, whether it is accepted, and whether it is valid."""
    for schema, instances in schemas():
        matcher = compiler.matcher(Constraint.json_schema(schema))
        validator = Draft202012Validator(schema, format_checker=formats)
        for number, instance in enumerate(instances):
            text = json.dumps(instance, ensure_ascii=False, **FORMS[number % len(FORMS)])
            yield schema, text, accepts(matcher.fork(), tokens_of(compiler, text)), validator.is_valid(instance)


def test_instances_are_accepted_as_a_validator_does(compiler: GrammarCompiler) -> None:
    found = list(verdicts(compiler))
    assert [each for each in found if each[2] != each[3]] == []
    assert len(list(schemas())) > 500
    assert sum(valid for *_, valid in found) > 1000
    assert sum(not valid for *_, valid in found) > 1000


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_cannot_be_honoured_is_named(compiler: GrammarCompiler, name: str) -> None:
    with pytest.raises(InputError, match=f"JSON schema: .*{name}"):
        compiler.matcher(Constraint.json_schema(UNSUPPORTED[name]))


@pytest.mark.parametrize(
    "schema",
    [
        False,
        {"$ref": "#"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        {"type": "integer", "minimum": 3, "maximum": 2},
    ],
)
def test_what_nothing_satisfies_is_refused(compiler: GrammarCompiler, schema: Any) -> None:
    with pytest.raises(InputError, match="JSON schema"):
        compiler.matcher(Constraint.json_schema(schema))


def test_true_accepts_any_json(compiler: GrammarCompiler) -> None:
    for text in ("1", "[]", '{"a": null}', '"x"'):
        assert accepts(compiler.matcher(Constraint.json_schema(True)), tokens_of(compiler, text))


def test_white_space_is_bounded(compiler: GrammarCompiler) -> None:
    matcher = compiler.matcher(Constraint.json_object())
    assert accepts(matcher.fork(), tokens_of(compiler, '{\n  "a":\n\t1 }'))
    for text in ("{  }", "{\n\n}", "{\n" + " " * 41 + "}", " {}"):
        assert not accepts(matcher.fork(), tokens_of(compiler, text))


@pytest.mark.parametrize("text", ["", "x", "[1]", "3", "[" * 100_000, '{"a": ' * 100_000])
def test_what_is_not_a_schema_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="JSON schema"):
        Constraint.json_schema(text)
