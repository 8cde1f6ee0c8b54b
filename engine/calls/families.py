"""Formats that rendering a chat template cannot show, by texts that are in the template."""

from lltool.engine.calls.answer_format import AnswerFormat, Dialect, TaggedArguments, Tags

THINK = Tags("<think>", "</think>")
HERMES_CALL = '<tool_call>\n{"name": "$name", "arguments": $arguments}\n</tool_call>'
_JSON_CALL = '{"name": "$name", "arguments": $arguments}'
_PYTHON = {"true": "True", "false": "False", "null": "None"}

# The first row all of whose texts are in the template is the format.
FAMILIES: tuple[tuple[tuple[str, ...], AnswerFormat], ...] = (
    (
        ("<|channel|>", "<|start|>assistant", "<|message|>"),
        AnswerFormat(
            name="gpt-oss",
            reasoning=Tags("<|channel|>analysis<|message|>", "<|end|>"),
            is_interleaved=True,
            calls=tuple(
                f"{start}{target}<|message|>$arguments<|call|>"
                for start, targets in (
                    (
                        "<|channel|>commentary to=functions.$name",
                        (" <|constrain|>json", " json", "<|constrain|>json", ""),
                    ),
                    (
                        " to=functions.$name<|channel|>",
                        ("commentary json", "commentary <|constrain|>json", "commentary", "analysis"),
                    ),
                )
                for target in targets
            ),
            ignored=(
                "<|start|>assistant",
                "<|channel|>final<|message|>",
                "<|channel|>commentary<|message|>",
                "<|end|>",
                "<|return|>",
            ),
            resume="<|start|>assistant",
            trigger=" to=functions.",
            is_single=True,
        ),
    ),
    (
        ("<|tool_call>call:", '<|"|>'),
        AnswerFormat(
            name="gemma4",
            reasoning=Tags("<|channel>thought\n", "<channel|>"),
            is_interleaved=True,
            calls=("<|tool_call>call:$name{$arguments}<tool_call|>",),
            arguments=Dialect(quotes=('<|"|>',), has_escapes=False, is_sorted=True),
        ),
    ),
    (
        ("<start_function_call>call:", "<escape>"),
        AnswerFormat(
            name="functiongemma",
            calls=("<start_function_call>call:$name{$arguments}<end_function_call>",),
            arguments=Dialect(quotes=("<escape>",), has_escapes=False, is_sorted=True),
        ),
    ),
    (
        ("List of tools: ",),
        AnswerFormat(
            name="lfm2",
            reasoning=THINK,
            section=Tags("<|tool_call_start|>[", "]<|tool_call_end|>"),
            calls=("$name($arguments)",),
            separator=", ",
            arguments=Dialect("=", ("'", '"'), has_bare_keys=False, words=_PYTHON, separator=", "),
        ),
    ),
    (
        ("<|START_ACTION|>", "tool_call_id"),
        AnswerFormat(
            name="command-r7b",
            reasoning=Tags("<|START_THINKING|>", "<|END_THINKING|>"),
            section=Tags("<|START_ACTION|>[", "\n]<|END_ACTION|>"),
            calls=('\n    {"tool_call_id": "$index", "tool_name": "$name", "parameters": $arguments}',),
            separator=",",
            ignored=("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>"),
        ),
    ),
    (
        ("directly-answer", '"tool_name"'),
        AnswerFormat(
            name="command-r",
            section=Tags("Action:\n```json\n[", "\n]```"),
            calls=('\n    {\n        "tool_name": "$name",\n        "parameters": $arguments\n    }',),
            separator=",",
        ),
    ),
    (
        ("<|open|>", "<|sep|>", "<|close|>"),
        AnswerFormat(
            name="kimi-k3",
            trigger="tools<|sep|>",
            reasoning=Tags("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
            section=Tags("<|open|>tools<|sep|>", "<|close|>tools<|sep|>"),
            calls=('<|open|>call tool="$name" index="$index"<|sep|>$arguments<|close|>call<|sep|>',),
            arguments=TaggedArguments('<|open|>argument key="$key" type="$type"<|sep|>', "<|close|>argument<|sep|>"),
            ignored=(
                "<|open|>response<|sep|>",
                "<|close|>response<|sep|>",
                "<|close|>message<|sep|>",
                "<|end_of_msg|>",
            ),
        ),
    ),
    (
        ("<|tool_calls_section_begin|>",),
        AnswerFormat(
            name="kimi-k2",
            reasoning=THINK,
            section=Tags("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
            calls=("<|tool_call_begin|>functions.$name:$index<|tool_call_argument_begin|>$arguments<|tool_call_end|>",),
            id="functions.$name:$index",
        ),
    ),
    (
        ("<｜tool▁calls▁begin｜>", "```json"),
        AnswerFormat(
            name="deepseek-v3",
            reasoning=THINK,
            section=Tags("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
            calls=("<｜tool▁call▁begin｜>function<｜tool▁sep｜>$name\n```json\n$arguments\n```<｜tool▁call▁end｜>",),
            separator="\n",
        ),
    ),
    (
        ("to=self<|message|>", "<atem:"),
        AnswerFormat(
            name="muse-glimmer",
            reasoning=Tags(" to=self<|message|>", "<|eom|>"),
            is_interleaved=True,
            calls=(
                ' to=$name<|message|><atem:function_calls>\n<atem:invoke name="$name">$arguments\n</atem:invoke>\n'
                "</atem:function_calls>",
            ),
            separator="<|eom|><|start|>assistant",
            trigger=" to=",
            arguments=TaggedArguments('\n<atem:parameter name="$key">', "</atem:parameter>"),
            ignored=("<|start|>assistant", " to=user<|message|>", "<|message|>", "<|eom|>"),
            resume="<|start|>assistant",
        ),
    ),
    (
        ("<tool_call>", "xml_tools", "python_tools"),
        AnswerFormat(name="smollm3", reasoning=THINK, calls=(HERMES_CALL,)),
    ),
    (
        ("<|tool_call|>", "<|/tool_call|>"),
        AnswerFormat(
            name="phi-4", section=Tags("<|tool_call|>[", "]<|/tool_call|>"), calls=(_JSON_CALL,), separator=", "
        ),
    ),
    (
        ("<|tool_call|>", "<|start_of_role|>"),
        AnswerFormat(name="granite-3", section=Tags("<|tool_call|>[", "]"), calls=(_JSON_CALL,), separator=", "),
    ),
    (
        ("<|tool|>", "<|/tool|>", "<|user|>"),
        AnswerFormat(
            name="phi-4", section=Tags("<|tool_call|>[", "]<|/tool_call|>"), calls=(_JSON_CALL,), separator=", "
        ),
    ),
    (
        ("<|start_header_id|>", '"parameters": '),
        AnswerFormat(
            name="llama3",
            calls=(
                '{"name": "$name", "parameters": $arguments}',
                '<|python_tag|>{"name": "$name", "parameters": $arguments}',
            ),
            is_first=True,
            is_single=True,
        ),
    ),
)

REASONING: tuple[Tags, ...] = (
    THINK,
    Tags("[THINK]", "[/THINK]"),
    Tags("<seed:think>", "</seed:think>"),
    Tags("<mm:think>", "</mm:think>"),
    Tags("<thinking>", "</thinking>"),
    Tags("Here are my reasoning steps:\n", "[BEGIN FINAL RESPONSE]"),
    Tags("<|START_THINKING|>", "<|END_THINKING|>"),
    Tags("<think:opensource>", "</think:opensource>"),
    Tags("<|begin_of_thought|>", "<|end_of_thought|>"),
)

# For a model whose template has no tools: what Hermes made common, with the tools in the system message.
GENERIC = AnswerFormat(name="generic", calls=(HERMES_CALL,))


def find_family(source: str) -> AnswerFormat | None:
    return next((format for texts, format in FAMILIES if all(text in source for text in texts)), None)


def find_reasoning(source: str) -> Tags | None:
    """The tags of reasoning that a template names."""
    return next((tags for tags in REASONING if tags.close in source), None)
