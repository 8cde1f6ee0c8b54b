"""A chat template with tools: what it is given, how its model's answers are read, and what constrains them."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Self

from lltool.engine.calls.answer_format import AnswerFormat
from lltool.engine.calls.call_matcher import CallMatcher
from lltool.engine.calls.lark import CallGrammar
from lltool.engine.calls.marks import Marks
from lltool.engine.calls.parser import AnswerParser
from lltool.engine.calls.probe import TemplateTraits, probe_template
from lltool.engine.calls.reasoning import opened_tags
from lltool.engine.calls.tool import Tool
from lltool.engine.calls.writing import describe_tools, write_calls
from lltool.engine.grammar.compiler import GrammarCompiler
from lltool.engine.grammar.constraint import Constraint, Trigger
from lltool.engine.grammar.matcher import Matcher
from lltool.engine.text.chat import ChatTemplate, Message
from lltool.engine.text.tokenizer import Tokenizer
from lltool.gguf.errors import InputError

_TAG = re.compile(r"<[^<>]*>|\[[^\[\]]*\]")


@dataclass(frozen=True)
class ToolUse:
    """Which tools a model may call in an answer. "required": the answer is a call; "auto": the model chooses."""

    tools: tuple[Tool, ...] = ()
    choice: Literal["none", "auto", "required"] = "auto"
    is_parallel: bool = True
    allowed: frozenset[str] | None = None  # the names of those that may be called, None for all

    @property
    def is_on(self) -> bool:
        return bool(self.tools) and self.choice != "none"

    @property
    def callable(self) -> tuple[Tool, ...]:
        """The tools that may be called; the model is told about all of them."""
        if not self.is_on:
            return ()
        return tuple(tool for tool in self.tools if self.allowed is None or tool.name in self.allowed)


NO_TOOLS = ToolUse()


def choose_tools(tools: tuple[Tool, ...], choice: str, *, is_parallel: bool = True) -> ToolUse:
    """Tools with a choice: "none", "auto", "required", or the name of the one to call, once.

    Raises InputError for another choice.
    """
    match choice:
        case "none" | "auto" | "required":
            return ToolUse(tools, choice, is_parallel)
    if choice not in (names := [tool.name for tool in tools]):
        raise InputError(f"tool choice {choice!r}, wanted none, auto, required or a tool's name ({', '.join(names)})")
    return ToolUse(tools, "required", False, frozenset([choice]))


@dataclass(frozen=True)
class ChatFormat:
    """What was found out about a template, for its tokenizer."""

    traits: TemplateTraits
    tokenizer: Tokenizer
    marks: Marks = field(default_factory=Marks)

    @classmethod
    def read(cls, template: ChatTemplate) -> Self:
        """Finds the format of a template by rendering it."""
        tokenizer = template.tokenizer
        ends = [tokenizer.tokens[id] for id in sorted(tokenizer.end_of_generation)]
        traits = probe_template(template.source, template.render, ends)
        return cls(traits, tokenizer, Marks.make(traits.format, tokenizer))

    @property
    def format(self) -> AnswerFormat:
        return self.traits.format

    def prepare(self, messages: Sequence[Message], use: ToolUse) -> tuple[list[Message], dict[str, Any]]:
        """Messages as the template takes them, and its variables.

        Calls of earlier messages are as OpenAI has them, their arguments JSON as a text or an object. Raises InputError
        for arguments that are no JSON object.
        """
        names = {
            call.get("id"): call["function"]["name"] for message in messages for call in message.get("tool_calls") or ()
        }
        found: list[dict[str, Any]] = []
        for message in messages:
            if message["role"] == "tool":
                self._add_result(found, message, names)
            elif message.get("tool_calls"):
                found.append(self._with_calls(message))
            else:
                found.append(dict(message))
        tools = [tool.as_json() for tool in use.tools] if use.is_on else []
        if not tools:
            return list(found), {}
        if self.traits.has_tools:
            return list(found), {"tools": tools}
        self._describe(found, describe_tools(self.format, tools))
        return list(found), {}

    def _add_result(self, found: list[dict[str, Any]], message: Message, names: Mapping[Any, str]) -> None:
        """The result of a call; for a template that does not know them, a text of the user."""
        id = message.get("tool_call_id")
        if self.traits.has_results:
            result = dict(message)
            if id in names:
                result.setdefault("name", names[id])
            if id is not None:
                result["tool_call_id"] = self._id(id)
            found.append(result)
            return
        text = f"<tool_response>\n{message['content']}\n</tool_response>"
        if found and found[-1].get("role") == "user" and str(found[-1]["content"]).endswith("</tool_response>"):
            found[-1]["content"] += f"\n{text}"
        else:
            found.append({"role": "user", "content": text})

    def _with_calls(self, message: Message) -> dict[str, Any]:
        calls = [(call["function"]["name"], _object(call), str(call.get("id") or "")) for call in message["tool_calls"]]
        content = message.get("content") or ""
        result = {name: value for name, value in message.items() if name != "tool_calls"}
        if not self.traits.has_calls:
            text = write_calls(self.format, calls)
            return {**result, "content": f"{content}\n{text}" if content else text}
        as_text = self.traits.arguments_as_text
        result["content"] = content or (None if self.traits.content_is_none else "")
        result["tool_calls"] = [
            {
                "id": self._id(id),
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(value, ensure_ascii=False) if as_text else value},
            }
            for name, value, id in calls
        ]
        return result

    def _id(self, id: str) -> str:
        """The id of a call as the template accepts it."""
        if not self.traits.has_short_ids or re.fullmatch("[A-Za-z0-9]{9}", id):
            return id
        return hashlib.sha256(id.encode("utf-8", "replace")).hexdigest()[:9]

    def _describe(self, messages: list[dict[str, Any]], text: str) -> None:
        """Tells the model about tools in the system message, or else before the first message of the user."""
        if messages and messages[0]["role"] == "system":
            messages[0]["content"] = f"{messages[0]['content']}\n\n{text}"
        elif self.traits.has_system:
            messages.insert(0, {"role": "system", "content": text})
        elif messages:
            messages[0]["content"] = f"{text}\n\n{messages[0]['content']}"

    def parser(self, prompt: Sequence[int], use: ToolUse, *, splits: bool = True) -> AnswerParser:
        """A parser of an answer to the tokens of a prompt. Without `splits`, reasoning stays in the content."""
        return AnswerParser(
            self.format,
            tools=use.callable,
            is_reasoning=self._is_reasoning(prompt),
            marks=self.marks,
            splits=splits,
        )

    def matcher(
        self, compiler: GrammarCompiler, prompt: Sequence[int], use: ToolUse, constraint: Constraint | None = None
    ) -> Matcher | None:
        """What constrains an answer: its calls, and what is no call to `constraint`. None for neither.

        If the prompt ends within reasoning, both are for what comes after it. Raises InputError for a tool whose schema
        cannot be enforced, and without the package llguidance.
        """
        is_open, reasoning = self._is_reasoning(prompt), self.format.reasoning
        if not use.is_on:
            return None if constraint is None else compiler.matcher(self._after_reasoning(constraint, is_open))
        grammar = CallGrammar(
            self.format,
            use.callable,
            control_ids=self._controls,
            ends=self.tokenizer.end_of_generation,
            is_parallel=use.is_parallel,
        )
        if use.choice == "required" or constraint is not None:
            answer = None if use.choice == "required" or constraint is None else _schema_of(constraint)
            text = grammar.required(may_reason=not is_open, after_reasoning=is_open, answer=answer)
            return compiler.matcher(self._after_reasoning(Constraint.lark(text), is_open))
        lazy = Constraint.lark(grammar.triggered()).after(*self._triggers(use.callable))
        return CallMatcher.of(
            compiler.matcher(lazy),
            reasoning=None if self.format.is_interleaved and not is_open else reasoning,
            is_open=is_open,
            is_anchored=bool(self.format.trigger),
        )

    def _after_reasoning(self, constraint: Constraint, is_open: bool) -> Constraint:
        """The constraint on what comes after reasoning, within which the text begins if `is_open`."""
        if not is_open or constraint.triggers:
            return constraint
        assert self.format.reasoning
        return constraint.after(self._trigger(self.format.reasoning.close.strip(), is_included=False))

    def _triggers(self, tools: Sequence[Tool]) -> list[Trigger]:
        format = self.format
        if format.trigger:
            text = next(part for part in re.split("(<[^<>]*>)", format.trigger) if part)
            follows = any(f"{text}$name" in call for call in format.calls)
            names = f"(?:{'|'.join(re.escape(tool.name) for tool in tools)})" if follows else ""
            return [Trigger("pattern", rf"\A\w*({re.escape(text)}{names})")]
        found = []
        for opening in format.openings():
            text = opening.lstrip()
            if format.is_first:
                if text[:1] == "{":
                    found.append(Trigger("pattern", rf"\A\s*({re.escape(text)})"))
                continue
            tag = _TAG.match(text)
            found.append(self._trigger(tag[0] if tag else text))
        return list(dict.fromkeys(found))

    def _trigger(self, text: str, *, is_included: bool = True) -> Trigger:
        """A trigger that is a control token, or a text."""
        first = max((name for name in self._controls if text.startswith(name)), key=len, default="")
        if first:
            return Trigger("token", self._controls[first], is_included)
        return Trigger("word", text, is_included)

    @cached_property
    def _controls(self) -> dict[str, int]:
        """The control tokens that are in the format's patterns."""
        ids = {sign: id for id, sign in self.marks.by_id.items()}
        return {text: ids[sign] for text, sign in self.marks.by_text.items()}

    def _is_reasoning(self, prompt: Sequence[int]) -> bool:
        reasoning = self.format.reasoning
        return reasoning is not None and opened_tags(prompt, self.tokenizer, [reasoning]) is not None


def _schema_of(constraint: Constraint) -> str:
    if constraint.kind != "json_schema" or constraint.triggers:
        raise InputError("beside tools, an answer can be constrained to a JSON schema only")
    return constraint.text


def _object(call: Mapping[str, Any]) -> dict[str, Any]:
    name, arguments = call["function"]["name"], call["function"].get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise InputError(f"tool_calls: the arguments of a call of {name} are not JSON: {error}") from None
    if not isinstance(arguments, Mapping | None):
        raise InputError(f"tool_calls: the arguments of a call of {name} are not a JSON object")
    return dict(arguments or {})
