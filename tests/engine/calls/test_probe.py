"""What rendering finds out about a template: the format of calls, and how messages must be given."""

import pytest

from lltool.engine.calls.answer_format import AnswerFormat, JsonArguments, TaggedArguments, Tags
from lltool.engine.calls.families import HERMES_CALL, THINK
from lltool.engine.calls.probe import TemplateTraits, probe_template
from lltool.engine.text.template_process import TemplateProcess
from tests.engine.calls import templates

FORMATS = {
    "HERMES": AnswerFormat("derived", THINK, calls=(HERMES_CALL,), separator="\n"),
    "TAGGED": AnswerFormat(
        "derived",
        THINK,
        calls=("<tool_call>\n<function=$name>$arguments\n</function>\n</tool_call>",),
        arguments=TaggedArguments("\n<parameter=$key>\n", "\n</parameter>"),
        separator="\n",
    ),
    "GLM": AnswerFormat(
        "derived",
        calls=("<tool_call>$name$arguments\n</tool_call>",),
        arguments=TaggedArguments("\n<arg_key>$key</arg_key>\n<arg_value>", "</arg_value>"),
        separator="\n",
    ),
    "MISTRAL": AnswerFormat(
        "derived",
        calls=('{"name": "$name", "arguments": $arguments, "id": "$id"}',),
        section=Tags("[TOOL_CALLS][", "]"),
        separator=",",
    ),
    "MISTRAL_NEW": AnswerFormat("derived", calls=("[TOOL_CALLS]$name[ARGS]$arguments",)),
    "DEEPSEEK": AnswerFormat(
        "derived",
        calls=("<｜tool▁call▁begin｜>$name<｜tool▁sep｜>$arguments<｜tool▁call▁end｜>",),
        section=Tags("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
    ),
    "NAMED": AnswerFormat(
        "derived",
        calls=('{"$name": $arguments}',),
        section=Tags("<|tools_prefix|>[", "]<|tools_suffix|>"),
        separator=",",
    ),
}


def probe(source: str) -> TemplateTraits:
    process = TemplateProcess(source, "template")
    values = {"bos_token": "", "eos_token": "", "tools": None, "add_generation_prompt": True}
    try:
        return probe_template(
            source, lambda messages, **more: process.render({**values, "messages": messages, **more}), ["<|im_end|>"]
        )
    finally:
        process.close()


@pytest.mark.parametrize("name", FORMATS)
def test_the_format_is_what_the_template_writes_around_calls(name: str) -> None:
    traits = probe(getattr(templates, name))
    assert traits.format == FORMATS[name]
    assert (traits.has_tools, traits.has_calls, traits.has_results, traits.has_system) == (True, True, True, True)
    assert traits.arguments_as_text == (name == "DEEPSEEK")
    assert traits.has_short_ids == (name == "MISTRAL")
    assert isinstance(traits.format.arguments, TaggedArguments if name in ("TAGGED", "GLM") else JsonArguments)


def test_a_template_without_tools_gets_the_general_format() -> None:
    traits = probe(templates.PLAIN)
    assert (traits.format.name, traits.has_tools, traits.has_calls) == ("generic", False, False)
    assert traits.format.calls == (HERMES_CALL,)


def test_a_template_that_fails_is_not_tried_again_and_again() -> None:
    asked = []

    def render(*arguments: object, **more: object) -> str:
        from lltool.gguf.errors import InputError

        asked.append(arguments)
        raise InputError("it takes too long")

    assert probe_template("x", render).format.name == "generic"
    assert len(asked) == 2
