"""Texts that `lltool.Model` generates: how they are sampled, what they follow, and their pieces."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from lltool.engine.calls.reasoning import after_reasoning, opened_tags
from lltool.engine.generate import Generation, Timings
from lltool.engine.grammar.constraint import Constraint
from lltool.engine.grammar.matcher import Matcher
from lltool.engine.model import Model
from lltool.engine.sampling_settings import SamplingOptions
from lltool.gguf.errors import InputError
from lltool.gguf.optional import require


class Sampling(SamplingOptions, total=False):
    """How a text is sampled and when it ends; `Model` says what these mean."""

    max_tokens: int | None
    stop: str | Sequence[str]
    grammar: str
    regex: str
    choices: Sequence[str]


class Stream(Iterator[str]):
    """The pieces of a text as they are generated. `text` is all of them so far.

    At the end, `reason` is "stop" (the model ended the text, or a stop string came) or "length" (`max_tokens`, or the
    context is full), and `detail` says it in words. A stream that is dropped, closed or left by `with` ends there.

    >>> with model.stream("Once upon a", max_tokens=8, temperature=0) as stream:
    ...     pieces = list(stream)
    >>> "".join(pieces) == stream.text, stream.reason, stream.timings.tokens
    (True, 'length', 8)
    """

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self.text = ""

    @property
    def reason(self) -> str:
        return self._generation.reason

    @property
    def detail(self) -> str:
        return self._generation.detail

    @property
    def timings(self) -> Timings:
        """What took how long, in seconds."""
        return self._generation.timings

    def __next__(self) -> str:
        while True:
            piece = next(self._generation).text
            if piece:
                self.text += piece
                return piece

    def close(self) -> None:
        """Ends the generation and returns its room in the cache."""
        self._generation.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_KINDS = {"grammar": Constraint.grammar, "regex": Constraint.regex, "choices": Constraint.choices}


def _reasoning_end(model: Model, ids: Sequence[int]) -> str | None:
    """The tag that closes the reasoning after a prompt; None if there is none, or a control token, which texts omit."""
    tags = opened_tags(ids, model.tokenizer)
    if tags is None:
        return None
    shown = model.tokenizer.decode(model.tokenizer.encode(tags.close, add_special=False, parse_special=True))
    return tags.close if tags.close in shown else None


@dataclass(frozen=True)
class Form:
    """What a text follows, and what is made of it: with `schema` the value that its JSON stands for."""

    constraint: Constraint | None
    schema: Any = None

    @classmethod
    def take(cls, given: dict[str, Any], schema: Any) -> "Form":
        """Takes grammar, regex or choices out of the named arguments. Raises InputError for two of the four."""
        named = {name: given.pop(name) for name in _KINDS if given.get(name) is not None}
        names = [*named, *(["schema"] if schema is not None else [])]
        if len(names) > 1:
            raise InputError(f"{names[0]} and {names[1]}: a text can have one constraint; leave one of them out")
        if schema is not None:
            return cls(Constraint.json_schema(_json_schema(schema)), schema)
        return cls(next((_KINDS[name](value) for name, value in named.items()), None))

    def matcher(self, model: Model, ids: Sequence[int]) -> Matcher | None:
        """A matcher for the text after a prompt. Raises InputError if the constraint cannot be honoured."""
        if self.constraint is None:
            return None
        begins_later = _reasoning_end(model, ids) is not None
        return model.grammars.matcher(
            after_reasoning(self.constraint, ids, model.tokenizer) if begins_later else self.constraint
        )

    def read(self, model: Model, ids: Sequence[int], text: str) -> Any:
        """The text after a prompt, or with a schema its value. Raises InputError if it was cut off."""
        if self.schema is None:
            return text
        from pydantic import TypeAdapter, ValidationError

        wanted = Any if isinstance(self.schema, Mapping | bool) else self.schema
        end = _reasoning_end(model, ids)
        answer = text if end is None else text.partition(end)[2]
        try:
            return TypeAdapter(wanted).validate_json(answer.strip())
        except ValidationError as error:
            raise InputError(
                f"the text is no value of the schema: {error.errors()[0]['msg']}; it was cut off if max_tokens came "
                f"before its end: {text[-80:]!r}"
            ) from None


_NESTED = ("items", "additionalProperties", "prefixItems", "anyOf", "oneOf")
_NAMED = ("properties", "patternProperties", "$defs")


def _closed(schema: Any) -> Any:
    """The schema of a type with no other properties than its own, which the type would only drop."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {"additionalProperties": False, **schema} if "properties" in schema else dict(schema)
    found |= {key: _closed(found[key]) for key in _NESTED if key in found}
    return found | {key: {name: _closed(each) for name, each in found[key].items()} for key in _NAMED if key in found}


def _json_schema(schema: Any) -> Mapping[str, Any] | bool:
    """The JSON schema of a type, such as a pydantic model, or the schema itself."""
    require("pydantic", "schema")
    from pydantic import TypeAdapter
    from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

    if isinstance(schema, Mapping | bool):
        return schema
    try:
        found: Mapping[str, Any] = _closed(TypeAdapter(schema).json_schema())
        return found
    except (PydanticSchemaGenerationError, PydanticUserError) as error:
        raise InputError(f"schema: {schema!r}: {error.message.splitlines()[0]}") from None
