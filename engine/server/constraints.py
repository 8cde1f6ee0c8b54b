"""What a request says about the form of its answer, in each client's words, as a constraint."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from lltool.engine.grammar.constraint import Constraint, Trigger
from lltool.engine.server.errors import ApiError, bad_request
from lltool.engine.server.fields import Fields
from lltool.gguf.errors import InputError

Schema = dict[str, Any] | bool


class GrammarTrigger(Fields):
    """llama-server's form: type 0 is a token, 1 a word."""

    type: int
    value: str = ""
    token: int = -1


class ConstraintFields(Fields):
    """llama-server's fields and vLLM's."""

    grammar: Annotated[str, Field(description="a grammar in GBNF that the answer follows")] | None = None
    json_schema: Annotated[Schema, Field(description="the JSON schema of the answer")] | None = None
    structured_outputs: (
        Annotated[dict[str, Any], Field(description="vLLM's form: json, regex, choice, grammar or structural_tag")]
        | None
    ) = None
    grammar_lazy: Annotated[bool, Field(description="whether the grammar begins at a trigger")] | None = None
    grammar_triggers: list[GrammarTrigger] | None = None

    def constraints(self) -> dict[str, Constraint]:
        """Those of the fields that are given, by the field's name. Raises ApiError if one is malformed."""
        found: dict[str, Constraint] = {}
        if self.grammar:
            found["grammar"] = Constraint.grammar(self.grammar)
        if self.json_schema is not None:
            found["json_schema"] = checked("json_schema", Constraint.json_schema, self.json_schema)
        if self.structured_outputs:
            found["structured_outputs"] = _structured(self.structured_outputs)
        return found

    def constraint(self) -> Constraint | None:
        """What the answer is constrained to, None for nothing. Raises ApiError for more than one constraint."""
        found = self.constraints()
        if len(found) > 1:
            raise bad_request(f"{' and '.join(found)}: an answer can have one constraint", next(iter(found)))
        chosen = next(iter(found.values()), None)
        if chosen is None or not self.grammar_lazy:
            return chosen
        triggers = [_trigger(place, each) for place, each in enumerate(self.grammar_triggers or [])]
        if not triggers:
            raise bad_request("grammar_lazy: wants grammar_triggers", "grammar_lazy")
        return chosen.after(*triggers)


class ResponseFormatFields(ConstraintFields):
    """With OpenAI's field beside them."""

    response_format: Annotated[dict[str, Any], Field(description="text, json_object or json_schema")] | None = None

    def constraints(self) -> dict[str, Constraint]:
        chosen = format_constraint("response_format", self.response_format)
        return super().constraints() | ({} if chosen is None else {"response_format": chosen})


def format_constraint(name: str, format: Mapping[str, Any] | None) -> Constraint | None:
    """A format as OpenAI, Anthropic and llama-server write it. Raises ApiError for one that is unknown."""
    kind = None if format is None else format.get("type")
    if format is None or kind == "text":
        return None
    if kind == "json_object":
        if (schema := format.get("schema")) is not None:
            return checked(name, Constraint.json_schema, schema)
        return Constraint.json_object()
    if kind == "json_schema":
        nested = format.get("json_schema")
        schema = nested.get("schema") if isinstance(nested, dict) else format.get("schema")
        if schema is None:
            raise bad_request(f"{name}: a json_schema without a schema", name)
        return checked(name, Constraint.json_schema, schema)
    if kind == "grammar" and isinstance(text := format.get("grammar"), str):
        return Constraint.grammar(text)
    if kind == "structural_tag":
        return checked(name, Constraint.structural_tag, format)
    raise bad_request(
        f"{name}: type {str(kind)[:40]!r}, wanted text, json_object, json_schema, structural_tag or grammar", name
    )


def _structured(fields: Mapping[str, Any]) -> Constraint:
    """vLLM's `structured_outputs`, of which one kind is given."""
    name = "structured_outputs"
    kinds = {
        "json": Constraint.json_schema,
        "regex": Constraint.regex,
        "choice": Constraint.choices,
        "grammar": Constraint.grammar,
        "structural_tag": Constraint.structural_tag,
    }
    given = {key: value for key, value in fields.items() if value not in (None, False)}
    if given == {"json_object": True}:
        return Constraint.json_object()
    if len(given) != 1 or (kind := next(iter(given))) not in kinds:
        raise bad_request(
            f"{name}: {', '.join(given) or 'nothing'}, wanted one of {', '.join(kinds)}, json_object", name
        )
    return checked(f"{name}.{kind}", kinds[kind], given[kind])


def checked(name: str, make: Any, value: Any) -> Constraint:
    try:
        found: Constraint = make(value)
    except (InputError, TypeError) as error:
        raise bad_request(f"{name}: {error}", name.partition(".")[0]) from None
    return found


def _trigger(place: int, trigger: GrammarTrigger) -> Trigger:
    if trigger.type not in (0, 1):
        raise ApiError(
            400,
            f"grammar_triggers[{place}]: type {trigger.type}, wanted 0 (a token) or 1 (a word); "
            "this server takes no patterns, as searching for one can take without end",
            "grammar_triggers",
            "unsupported",
        )
    try:
        return Trigger("word", trigger.value) if trigger.type else Trigger("token", trigger.token)
    except InputError as error:
        raise bad_request(f"grammar_triggers[{place}]: {error}", "grammar_triggers") from None
