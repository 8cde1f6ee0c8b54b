"""The chat templates in llama.cpp's tree: what each writes of calls is read back, in pieces of every size."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from lltool.engine.calls.parser import AnswerParser
from lltool.engine.calls.probe import TemplateTraits, probe_template
from lltool.engine.calls.tool import Tool
from lltool.engine.calls.writing import write_calls
from lltool.engine.text.template_process import TemplateProcess

pytestmark = pytest.mark.rival
TREE = os.environ.get("LLAMA_CPP_TREE", "")
TEMPLATES = sorted(Path(TREE).glob("models/templates/*.jinja")) if TREE else []


def _property(kind: str, **more: Any) -> dict[str, Any]:
    # One template wants both of these fields of everything.
    return {"type": kind, "description": "D.", "additionalProperties": False, **more}


WEATHER = {
    "type": "object",
    "properties": {"city": _property("string"), "days": _property("integer")},
    "required": ["city"],
}
NOTE = {
    "type": "object",
    "properties": {
        "text": _property("string"),
        "tags": _property("array", items={"type": "string"}),
        "urgent": _property("boolean"),
    },
    "required": ["text"],
}
TOOLS = (Tool("get_weather", "W.", WEATHER), Tool("add_note", "N.", NOTE))
CALLS: list[tuple[str, dict[str, Any], str]] = [
    ("get_weather", {"city": "Paris </x>", "days": 3}, "call00001"),
    ("add_note", {"text": 'a "b"\n  c é', "tags": ["x", "y"], "urgent": True}, "call00002"),
]
REASONING, CONTENT = "Why?\nBecause.", "Content."
ASK = {"role": "user", "content": "Question?"}
# The format of each template that has none of its own that could be found, and why.
GENERIC = {
    "HuggingFaceTB-SmolLM3-3B": "it says nothing of tools",
    "MiniMax-M3": "each argument is a tag of its own name",
    "fireworks-ai-llama-3-firefunction-v2": "its tools are another variable",
    "google-gemma-2-2b-it": "it says nothing of tools",
    "llama-cpp-rwkv-world": "it says nothing of tools",
    "meetkai-functionary-medium-v3.2": "nothing but a name marks a call",
    "microsoft-Phi-3.5-mini-instruct": "it says nothing of tools",
}


class Rendered:
    """A template, rendered as a server does with reasoning on."""

    def __init__(self, path: Path) -> None:
        self.source = path.read_text()
        self.process = TemplateProcess(self.source, path.stem)

    def __call__(self, messages: Any, **variables: Any) -> str:
        values = {"bos_token": "<BOS>", "eos_token": "<EOS>", "tools": None, "documents": None}
        values |= {"enable_thinking": True, "thinking": True, "reasoning_effort": "high"}
        return self.process.render({**values, "add_generation_prompt": True, "messages": messages, **variables})


@pytest.mark.skipif(not TEMPLATES, reason="LLAMA_CPP_TREE names no tree of llama.cpp")
@pytest.mark.parametrize("path", TEMPLATES, ids=[path.stem for path in TEMPLATES])
def test_what_a_template_writes_comes_back(path: Path) -> None:
    render = Rendered(path)
    try:
        traits = probe_template(render.source, render, ["<EOS>"])
        assert (traits.format.name == "generic") == (path.stem in GENERIC)
        tags = traits.format.reasoning
        count = 1 if traits.format.is_single else 2
        for text, is_reasoning in _answers(render, traits, count):
            results = {json.dumps(_parse(traits, text, size, is_reasoning)) for size in range(1, len(text) + 1)}
            assert len(results) == 1
            reasoning, content, calls = json.loads(results.pop())
            assert reasoning == (REASONING if (tags and tags.open.strip() in text) or is_reasoning else "")
            assert content.strip() in ("", CONTENT)
            found = [(name, json.loads(arguments)) for name, arguments in calls]
            assert found == [(name, arguments) for name, arguments, _ in CALLS[:count]]
    finally:
        render.process.close()


def _answers(render: Rendered, traits: TemplateTraits, count: int) -> list[tuple[str, bool]]:
    """The answer as the format has it and, if the template writes calls, as the template does."""
    format = traits.format
    tags = format.reasoning
    content = "" if format.is_first else CONTENT
    reasoned = f"{tags.open}{REASONING}{tags.close}{format.resume}" if tags else ""
    if not tags:
        return [(text, False) for text in _rendered(render, traits, count)]
    own = reasoned + content + write_calls(format, CALLS[:count])
    prompt = render([ASK], tools=[tool.as_json() for tool in TOOLS] if traits.has_tools else None)
    is_open = prompt.rstrip().endswith(tags.open.strip())
    found = [(own, False)]
    for text in _rendered(render, traits, count):
        # Some templates leave out the reasoning of earlier answers, which the model writes.
        if REASONING not in text and format.name != "gpt-oss":
            text = f"{tags.open}{REASONING}{tags.close}{text}"
        begins_open = is_open and tags.open.strip() not in text
        found.append((text, begins_open))
    return found


def _rendered(render: Rendered, traits: TemplateTraits, count: int) -> list[str]:
    if not traits.has_calls:
        return []
    calls = [
        {
            "id": id,
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(value) if traits.arguments_as_text else value},
        }
        for name, value, id in CALLS[:count]
    ]
    content = None if traits.content_is_none else ""
    message = {"role": "assistant", "content": content, "reasoning_content": REASONING, "tool_calls": calls}
    tools = [tool.as_json() for tool in TOOLS]
    whole = render([ASK, message], tools=tools, add_generation_prompt=False)
    start = whole.rfind(ASK["content"])
    value = whole.find(CALLS[0][1]["city"], start)
    openings = [each.lstrip("\n").split("\n")[0] for each in traits.format.openings()]
    first = max(whole.rfind(each, start, value) for each in openings)
    last = max(whole.rfind(str(value)) for value in ("urgent", "days") if str(value) in whole[start:])
    ends = [whole.find(each, last) for each in (traits.format.section.close.strip(), _tail(traits)) if each]
    end = max([place for place in ends if place >= 0], default=len(whole))
    closing = traits.format.section.close.strip() or _tail(traits)
    return [whole[first : end + len(closing)].removesuffix("<EOS>")]


def _tail(traits: TemplateTraits) -> str:
    """What ends a call."""
    return traits.format.calls[0].rpartition("$arguments")[2].strip().split("\n")[-1]


def _parse(traits: TemplateTraits, text: str, size: int, is_reasoning: bool) -> tuple[str, str, list[tuple[str, str]]]:
    parser = AnswerParser(traits.format, tools=TOOLS, is_reasoning=is_reasoning)
    found = [parser.push(text[start : start + size]) for start in range(0, len(text), size)]
    found.append(parser.flush())
    calls = [(call.name, call.arguments) for call in parser.calls]
    return "".join(each.reasoning for each in found), "".join(each.content for each in found), calls
