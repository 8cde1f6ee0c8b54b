"""What the user of a chat types or pipes into it: one message a line, or a block between lines with three quotes."""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from lltool.gguf.errors import InputError
from lltool.gguf.text_file import decode_argument
from lltool.tools.signals import continue_after
from lltool.tools.talk import note
from lltool.tools.terminal import BOLD, coloured, has_colours

if TYPE_CHECKING:
    from prompt_toolkit.completion import Completer
    from prompt_toolkit.history import History

Choices = Sequence[str] | Literal["path"]
"""What can follow a command, for completion."""

PROMPT, CONTINUATION = "> ", "... "
_QUOTES = '"""'
_BLOCK = re.compile(r'\s*(?:/\w+\s+(?:system\s+)?)?"""')  # a message, or a command's argument, that begins with quotes


def is_open(entry: str) -> bool:
    """Whether an entry begins a block that has not ended yet."""
    start = _BLOCK.match(entry)
    rest = entry[start.end() :].rstrip() if start else _QUOTES
    return not rest.endswith(_QUOTES)


def unquoted(text: str) -> str:
    """The text of a block, without its quotes and the line ends beside them; any other text as it is."""
    inner = text.strip()
    if not inner.startswith(_QUOTES) or is_open(inner):
        return text
    return inner[len(_QUOTES) : -len(_QUOTES)].removeprefix("\n").removesuffix("\n")


class Reader(Protocol):
    """Where the entries of a chat come from: messages, commands and blocks."""

    is_interactive: bool

    def read(self) -> str | None:
        """The next entry; None at the end of the input. Raises KeyboardInterrupt after Ctrl-C on an empty line."""

    def session(self) -> AbstractContextManager[None]:
        """A context for the whole chat."""

    def answering(self) -> AbstractContextManager[None]:
        """A context for an answer: keys that are typed in it are not shown, but kept for the next entry."""


class LineReader:
    """Reads standard input by lines. On a terminal, it asks for them on stderr."""

    def __init__(self) -> None:
        self.is_interactive = sys.stdin.isatty()

    def read(self) -> str | None:
        entry = self._read_line(PROMPT)
        while entry is not None and is_open(entry):
            line = self._read_line(CONTINUATION)
            if line is None:
                raise InputError(f"standard input: ends in a block; wanted {_QUOTES} at the end of its last line")
            entry += line
        return None if entry is None else entry.removesuffix("\n")

    def session(self) -> AbstractContextManager[None]:
        return nullcontext()

    def answering(self) -> AbstractContextManager[None]:
        return _silent_keys() if self.is_interactive else nullcontext()

    def _read_line(self, prompt: str) -> str | None:
        if self.is_interactive:
            print(coloured(prompt, BOLD, sys.stderr), end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().replace("\r\n", "\n") or None


class PromptReader:
    """Reads from a terminal, with editing, history and completion; a paste of several lines is one entry."""

    is_interactive = True

    def __init__(self, choices: Mapping[str, Choices], history: Path | None) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.application import get_app
        from prompt_toolkit.filters import Condition
        from prompt_toolkit.formatted_text import ANSI

        style = ("\x1b[1m{}\x1b[0m" if has_colours(sys.stdout) else "{}").format
        self._session: PromptSession[str] = PromptSession(
            ANSI(style(PROMPT)),
            multiline=Condition(lambda: is_open(get_app().current_buffer.text)),
            prompt_continuation=ANSI(style(CONTINUATION)),
            history=_history(history),
            completer=_completer(choices),
            complete_while_typing=False,
            enable_suspend=True,
        )

    def read(self) -> str | None:
        try:
            return decode_argument(self._session.prompt(), "the message")
        except EOFError:
            return None
        except KeyboardInterrupt as interrupt:
            continue_after(interrupt)
            if self._session.default_buffer.text:
                return ""  # Ctrl-C only dropped what was typed
            raise

    def session(self) -> AbstractContextManager[None]:
        return _silent_keys()  # also between the prompt and the answer; the prompt shows keys itself

    @contextmanager
    def answering(self) -> Iterator[None]:
        from prompt_toolkit.utils import is_dumb_terminal

        output = self._session.output
        if is_dumb_terminal():
            yield
            return
        output.enable_bracketed_paste()  # the end of the prompt has switched it off
        output.flush()
        try:
            yield
        finally:
            output.disable_bracketed_paste()
            output.flush()


def make_reader(choices: Mapping[str, Choices], history: Path | None) -> Reader:
    """The reader for this process's standard input.

    `choices` has the commands with what can follow them. `history` is the file in which entries are kept, if any.
    """
    if sys.stdin.isatty() and sys.stdout.isatty():
        return PromptReader(choices, history)
    return LineReader()


def _history(path: Path | None) -> "History":
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    if path is None:
        return InMemoryHistory()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)  # what is said to a model is private
        path.open("ab").close()
    except OSError as error:
        note(f"{path}: {error.strerror}; what you type is not kept for the next chat")
        return InMemoryHistory()
    return FileHistory(path)


def _completer(choices: Mapping[str, Choices]) -> "Completer":
    """Completes the names of commands, and what may follow them: a path or one of some words."""
    from prompt_toolkit.application import get_app
    from prompt_toolkit.completion import Completer, DynamicCompleter, NestedCompleter, PathCompleter, WordCompleter

    commands = WordCompleter(list(choices), sentence=True)
    after: dict[str, Completer | None] = {
        name: PathCompleter(expanduser=True) if words == "path" else WordCompleter(list(words))
        for name, words in choices.items()
    }
    arguments = NestedCompleter(after)
    return DynamicCompleter(lambda: arguments if " " in get_app().current_buffer.text else commands)


@contextmanager
def _silent_keys() -> Iterator[None]:
    """A context in which the terminal shows no keys and passes them on as they are; Ctrl-C still interrupts."""
    try:
        import termios
    except ImportError:  # Windows shows keys only where they are read
        yield
        return
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    silent = [*before]
    silent[0] &= ~termios.ICRNL
    silent[3] &= ~(termios.ECHO | termios.ICANON | termios.IEXTEN)
    try:
        termios.tcsetattr(terminal, termios.TCSANOW, silent)
        yield
    finally:
        with suppress(termios.error):  # the terminal was closed
            termios.tcsetattr(terminal, termios.TCSANOW, before)
