"""Constrained texts of the library: values of schemas, grammars, regular expressions and choices."""

import re
from collections.abc import Iterator
from typing import Any

import pydantic
import pytest

import lltool
from lltool.engine.calls.answer_format import Tags
from lltool.gguf.metadata import string, u32
from lltool.tools.api import generated
from lltool.tools.api.generated import Form
from tests.engine import tiny_gguf


class Pair(pydantic.BaseModel):
    name: str = pydantic.Field(pattern="^[a-c]{2}$")
    n: int = pydantic.Field(ge=10, le=99)


SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "maximum": 9, "minimum": 1}},
    "required": ["n"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module", params=["end", "no end"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[lltool.Model]:
    """A random model, whose vocabulary has a token that ends a text, or none."""
    keys = {
        **tiny_gguf.metadata(),
        **tiny_gguf.vocabulary(),
        "tokenizer.chat_template": string("{% for m in messages %}{{ m.content }}{% endfor %}>"),
    }
    if request.param == "no end":
        keys["tokenizer.ggml.eos_token_id"] = u32(0xFFFFFFFF)
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    tiny_gguf.write_model(path, keys, tiny_gguf.tensors())
    with lltool.load(path, threads=1, sequences=4) as model:
        yield model


def test_a_pydantic_model_gives_its_instance(model: lltool.Model) -> None:
    found = model.generate("abc", schema=Pair, temperature=1.5, max_tokens=60)
    assert isinstance(found, Pair)
    (one, two) = model.generate(["abc", "abd"], schema=Pair, temperature=1.5, max_tokens=60)
    assert isinstance(one, Pair)
    assert isinstance(two, Pair)
    answer = model.chat([{"role": "user", "content": "abc"}], schema=Pair, temperature=1.5, max_tokens=60)
    assert isinstance(answer, Pair)


@pytest.mark.parametrize(
    ("schema", "kind"), [(SCHEMA, dict), (list[int], list), ({"type": "boolean"}, bool), (bool, bool)]
)
def test_a_type_or_a_json_schema_gives_its_value(model: lltool.Model, schema: Any, kind: type) -> None:
    found = model.generate("abc", schema=schema, seed=1, max_tokens=100)
    assert isinstance(found, kind)


def test_a_value_may_hold_a_tag_of_reasoning(model: lltool.Model) -> None:
    assert model.generate("abc", schema={"const": "a</think>b"}, max_tokens=60) == "a</think>b"


@pytest.mark.parametrize(("opening", "closing"), [("<think>", "</think>"), ("[THINK]", "[/THINK]")])
def test_a_value_is_read_after_the_reasoning(model: lltool.Model, opening: str, closing: str) -> None:
    form = Form.take({}, {"type": "string"})
    prompt = model.tokenize(f"abc{opening}")
    assert form.read(model.engine, prompt, f'"why"{closing} "a{closing}b"') == f"a{closing}b"
    with pytest.raises(lltool.InputError, match="it was cut off"):
        form.read(model.engine, prompt, '"why"')


def test_a_closing_tag_that_texts_omit(model: lltool.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The value could not be found after such a tag, so it comes at once."""
    monkeypatch.setattr(generated, "opened_tags", lambda *_: Tags("abc", "</s>"))
    assert model.generate("abc", schema={"const": "ab"}, max_tokens=60) == "ab"


def test_grammars_regular_expressions_and_choices(model: lltool.Model) -> None:
    assert re.fullmatch("x{2,4}[0-9]", model.generate("abc", grammar='root ::= "x"{2,4} [0-9]', temperature=1.5))
    assert all(re.fullmatch("[0-9]{3}", text) for text in model.generate(["abc", "abd"], regex="[0-9]{3}"))
    assert model.generate("abc", choices=["yes", "no"]) in ("yes", "no")
    assert model.chat([{"role": "user", "content": "abc"}], choices=["yes", "no"]) in ("yes", "no")
    with model.stream("abc", regex="[0-9]{5}") as stream:
        assert re.fullmatch("[0-9]{5}", "".join(stream))
        assert stream.reason == "stop"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"schema": Pair, "max_tokens": 3}, "the text is no value of the schema: .* it was cut off if max_tokens came"),
        ({"schema": Pair, "regex": "a"}, "regex and schema: a text can have one constraint"),
        ({"grammar": "x", "regex": "a"}, "grammar and regex: a text can have one constraint"),
        ({"schema": {"not": {}}}, 'JSON schema: Unimplemented keys: \\["not"\\]'),
        ({"schema": object()}, "schema: .*Unable to generate"),
        ({"regex": 3}, "regex: 3, wanted a text"),
        ({"choices": "yes"}, "choices: 'yes', wanted a list of texts"),
    ],
)
def test_what_cannot_be_honoured_is_named(model: lltool.Model, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(lltool.InputError, match=message):
        model.generate("abc", **arguments)


def test_a_stream_has_no_schema(model: lltool.Model) -> None:
    with pytest.raises(TypeError, match="a stream gives text"):
        model.chat([{"role": "user", "content": "abc"}], stream=True, schema=Pair)
