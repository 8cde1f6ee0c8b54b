"""`lltool chat`: a conversation with a model, on a terminal or from a pipe."""

import argparse
import os
import re
import sys
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lltool.gguf.errors import FileChanged, InputError
from lltool.gguf.text_file import read_prompt
from lltool.tools.arguments import command_parser
from lltool.tools.chat_input import PROMPT, Choices, Reader, make_reader, unquoted
from lltool.tools.chat_settings import SETTINGS, change_setting, find_setting, settings_to_show, show_setting
from lltool.tools.constraint_arguments import read_constraint
from lltool.tools.generation_arguments import (
    MOST_USED,
    add_generation_arguments,
    given_prompt,
    kept_tokens,
    load_requested_model,
    max_tokens,
    parse_generation_arguments,
    read_requested_template,
    shift_note,
)
from lltool.tools.parser import CommandParser
from lltool.tools.sampling_arguments import make_sampler, shipped_note
from lltool.tools.signals import continue_after
from lltool.tools.talk import error, note
from lltool.tools.terminal import DIM, say, without_controls
from lltool.tools.timings import timing_lines
from lltool.tools.tool_arguments import call_line, read_tool_use

if TYPE_CHECKING:
    from lltool.engine.conversation import Answer, Conversation

EXAMPLES = """
lltool chat model.gguf
lltool chat model.gguf -sys "You answer in one sentence." --temp 0.3 --stats
lltool chat model.gguf < questions.txt > answers.txt    # a message a line, or a block from \"\"\" to \"\"\"
"""


class Command(NamedTuple):
    argument: str
    help: str


COMMANDS = {
    "help": Command("", "show this list"),
    "system": Command("[TEXT]", "show or replace the system message"),
    "set": Command("[NAME [VALUE]]", "show or change settings"),
    "regen": Command("", "answer the last message again"),
    "clear": Command("", "forget the conversation"),
    "save": Command("FILE", "write the conversation and its settings to a JSON file"),
    "load": Command("FILE", "go on with a saved conversation"),
    "read": Command("FILE", "put a text file before the next message"),
    "stats": Command("[on|off]", "show what the last answer took; on: after each answer"),
    "exit": Command("", "leave"),
}
_ALIASES = {"?": "help", "quit": "exit", "bye": "exit"}
_KEYS = """\
\"\"\" begins and ends a message of several lines; // begins a message with one slash.
Ctrl-C stops an answer; on an empty line, Ctrl-D or Ctrl-C twice leaves."""


def main(argv: list[str]) -> int:
    arguments = parse_generation_arguments(parser(), argv)
    return converse(arguments, given_prompt(arguments))


def parser() -> CommandParser:
    parser = command_parser(
        "chat",
        "Chats with a model. From a pipe, it answers one message a line, and prints only the answers.",
        EXAMPLES,
        most_used=MOST_USED,
    )
    add_generation_arguments(parser)
    return parser


def converse(arguments: argparse.Namespace, first: str | None) -> int:
    """Chats until the input ends; `first` is the first message.

    Returns the exit code, 2 if a message or command of piped input failed.
    """
    use = read_tool_use(arguments)
    history = None if arguments.no_history else Path.home() / ".cache" / "lltool" / "chat_history"
    reader = make_reader(_choices(), history)
    with reader.session(), load_requested_model(arguments) as model:
        from lltool.engine.conversation import Conversation

        conversation = Conversation(
            model,
            read_requested_template(arguments, model),
            sampler=make_sampler(arguments, model.file.metadata),
            system=arguments.system or "",
            max_tokens=max_tokens(arguments),
            stop=arguments.reverse_prompt,
            parse_special=arguments.special,
            keep=kept_tokens(arguments),
            constraint=read_constraint(arguments),
            use=use,
        )
        if shipped := shipped_note(arguments, model.file.metadata):
            note(shipped)
        if reader.is_interactive:
            say(f"{arguments.model.name}, context {model.context}; /help lists the commands", DIM)
        chat = _Chat(conversation, reader, has_stats=arguments.stats)
        chat.run(first)
    return 2 if chat.has_failed and not reader.is_interactive else 0


def _choices() -> dict[str, Choices]:
    words: dict[str, Choices] = {"FILE": "path", "[NAME [VALUE]]": list(SETTINGS), "[on|off]": ["on", "off"]}
    return {f"/{name}": words.get(command.argument, []) for name, command in COMMANDS.items()}


class _Chat:
    """A conversation with the user of this process."""

    def __init__(self, conversation: "Conversation", reader: Reader, *, has_stats: bool) -> None:
        self.conversation = conversation
        self.reader = reader
        self.has_stats = has_stats
        self.has_failed = False
        self._is_over = False
        self._last: Answer | None = None
        self._texts: list[str] = []  # of files, for the next message
        self._results: list[str] = []  # of the first of the calls that wait for theirs
        self._commands: dict[str, Callable[[str], None]] = {
            "help": self._help,
            "system": lambda text: self._set(f"system {text}"),
            "set": self._set,
            "regen": self._regenerate,
            "clear": self._clear,
            "save": self._save,
            "load": self._load,
            "read": self._read,
            "stats": self._stats,
            "exit": self._exit,
        }

    def run(self, first: str | None) -> None:
        if first and first.strip():
            if self.reader.is_interactive:
                say(PROMPT + first)
            self._try(self._send, first)
        interrupts = 0
        while not self._is_over:
            try:
                entry = self.reader.read()
            except KeyboardInterrupt as interrupt:
                if not self.reader.is_interactive:
                    raise
                continue_after(interrupt)
                interrupts += 1
                if interrupts == 2:
                    return
                note("Ctrl-C again, or Ctrl-D, leaves")
                continue
            except InputError as refused:
                if not self.reader.is_interactive:
                    raise
                error(str(refused))
                continue
            interrupts = 0
            if entry is None:
                return
            self._try(self._take, entry)

    def _try(self, act: Callable[[str], None], text: str) -> None:
        """Does what can fail or be stopped without an end to the chat."""
        try:
            act(text)
        except FileChanged:
            raise
        except InputError as refused:
            error(str(refused))
            self.has_failed = True
        except KeyboardInterrupt as interrupt:
            if not self.reader.is_interactive:
                raise
            continue_after(interrupt)
            note("stopped; the conversation is as it was before")

    def _take(self, entry: str) -> None:
        """Follows a command, or sends a message."""
        if not entry.startswith("/") or entry.startswith("//"):
            message = unquoted(re.sub(r"^(?: /|//)", "/", entry))
            if calls := self._waiting_calls():
                self._take_result(message, len(calls))
            elif message.strip():
                self._send(message)
            return
        name, *rest = entry[1:].split(maxsplit=1) or [""]
        name, argument = _ALIASES.get(name, name), rest[0].strip() if rest else ""
        if name not in COMMANDS:
            close = get_close_matches(name, [*COMMANDS, *_ALIASES], n=1)
            hint = f"did you mean /{close[0]}?" if close else "/help lists the commands."
            raise InputError(f"no command /{name}; {hint} Begin a message with // if it should begin with a slash.")
        if argument and not COMMANDS[name].argument:
            raise InputError(f"/{name} takes no argument, found {argument!r}")
        try:
            self._commands[name](argument)
        except BrokenPipeError:
            raise
        except OSError as failed:
            raise InputError(f"{failed.filename}: {failed.strerror}") from None

    def _send(self, text: str) -> None:
        message = "\n\n".join([*self._texts, text])
        self._texts.clear()
        self._answer(lambda: self.conversation.ask(message))

    def _waiting_calls(self) -> "list[dict[str, Any]]":
        """The calls of the last answer, which the user has not answered yet."""
        messages = self.conversation.messages
        return list(messages[-1].get("tool_calls") or []) if messages else []

    def _take_result(self, text: str, count: int) -> None:
        self._results.append(text)
        if len(self._results) < count:
            self._ask_result()
            return
        results = list(self._results)
        self._answer(lambda: self.conversation.answer_calls(results))

    def _ask_result(self) -> None:
        name = self._waiting_calls()[len(self._results)]["function"]["name"]
        note(f"write what {name} gave")

    def _answer(self, begin: "Callable[[], Answer]") -> None:
        """Prints an answer as it is generated, and its calls of tools; Ctrl-C ends only the answer."""
        self._results.clear()
        answer: Answer | None = None
        try:
            with self.reader.answering():
                answer = self._last = begin()
                if answer.newly_forgotten:
                    count = _messages(self.conversation.forgotten)
                    note(f"the context is full; the model no longer sees the oldest {count}")
                self._print(answer)
        except KeyboardInterrupt as interrupt:
            if answer is None or not answer.generation.timings.tokens or not self.reader.is_interactive:
                raise
            continue_after(interrupt)  # the user sees where the answer stops
            return
        if answer.is_cut_off:
            note(f"the answer is cut off: {answer.generation.detail}")
        if self.has_stats:
            self._print_stats()
        if answer.calls:
            for call in answer.calls:
                print(call_line(call), flush=True)
            self._ask_result()

    def _print(self, answer: "Answer") -> None:
        is_escaped, is_shifted = sys.stdout.isatty(), False
        try:
            for token in answer:
                print(without_controls(token.text) if is_escaped else token.text, end="", flush=True)
                if answer.generation.dropped and not is_shifted:
                    is_shifted = True
                    note(shift_note(answer.generation, self.conversation.model.context))
        finally:
            answer.close()
            shown = answer.text or answer.reasoning
            if answer.generation.timings.tokens and not shown.endswith("\n") and (shown or not answer.calls):
                print(flush=True)

    def _help(self, argument: str) -> None:
        rows = [(f"/{name} {command.argument}", command.help) for name, command in COMMANDS.items()]
        say("\n".join(f"  {what:<20}{meaning}" for what, meaning in rows) + "\n" + _KEYS)

    def _set(self, argument: str) -> None:
        words = argument.removeprefix("parameter ").split(maxsplit=1)  # Ollama says `/set parameter NAME VALUE`
        names = [find_setting(words[0])] if words else settings_to_show(self.conversation)
        if len(words) == 2:
            change_setting(self.conversation, names[0], words[1])
        for name in names:
            meaning = f"  ({SETTINGS[name]})" if not words else ""
            say(f"{name:<12} {show_setting(self.conversation, name)}{meaning}")
        if not words:
            others = [name for name in SETTINGS if name not in names]
            say(f"as usual:    {', '.join(others)}")

    def _regenerate(self, argument: str) -> None:
        self._answer(self.conversation.regenerate)

    def _clear(self, argument: str) -> None:
        self._texts.clear()
        self._results.clear()
        self.conversation.clear()
        note("the conversation is forgotten; the settings stay as they are")

    def _save(self, argument: str) -> None:
        from lltool.engine.conversation_file import save_conversation

        path = _path(argument, "/save")
        save_conversation(self.conversation, path)
        note(f"{_messages(len(self.conversation.messages))} saved in {path}")

    def _load(self, argument: str) -> None:
        from lltool.engine.conversation_file import load_conversation

        path = _path(argument, "/load")
        load_conversation(self.conversation, path)
        self._results.clear()
        messages = self.conversation.messages
        unanswered = "; /regen answers the last one" if messages and messages[-1]["role"] == "user" else ""
        note(f"{_messages(len(messages))} loaded from {path}{unanswered}")

    def _read(self, argument: str) -> None:
        path = _path(argument, "/read")
        text = read_prompt(path).removesuffix("\n")
        tokens = len(self.conversation.model.tokenizer.encode(text, add_special=False))
        self._texts.append(text)
        note(f"{path}: {tokens} tokens go before the next message")

    def _stats(self, argument: str) -> None:
        if argument in ("on", "off"):
            self.has_stats = argument == "on"
            note(f"statistics after each answer: {argument}")
        elif argument:
            raise InputError(f"/stats {argument}, wanted on, off, or nothing for those of the last answer")
        else:
            self._print_stats()

    def _print_stats(self) -> None:
        conversation = self.conversation
        if self._last is None:
            raise InputError("there is no answer yet that statistics could be about")
        say("\n".join(timing_lines(self._last.generation)), DIM)
        forgotten = f", {conversation.forgotten} of them forgotten" if conversation.forgotten else ""
        used = f"{conversation.cached} of {conversation.model.context} tokens of the context in use"
        say(f"[{used} | {_messages(len(conversation.messages))}{forgotten}]", DIM)

    def _exit(self, argument: str) -> None:
        self._is_over = True


def _path(argument: str, command: str) -> Path:
    if not argument:
        raise InputError(f"{command} wants the name of a file")
    return Path(os.path.expanduser(argument))


def _messages(count: int) -> str:
    return f"{count} message" if count == 1 else f"{count} messages"
