"""The parser of a command line: llama.cpp's flags are known, near names are suggested, and help is short or long."""

import argparse
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from lltool.gguf.errors import InputError
from lltool.tools.adapter_arguments import is_number
from lltool.tools.llama_cpp_flags import HAD, IGNORED, REFUSED, SAMPLING, SWITCHES, Ignored
from lltool.tools.talk import note, silence

_ROWS = (*HAD, *(flag.names for flag in (*IGNORED, *SAMPLING)), *(flag.names for flag in REFUSED))
_KNOWN = [name for names in _ROWS for name in names.split()]
QUIET = ("-q", "--quiet")
_SHOWN_IN_FULL = 16  # options, above which --help shows only the most used ones


class CommandParser(argparse.ArgumentParser):
    """Raises InputError for bad arguments, where argparse prints its usage and exits.

    A parser with -m also takes llama.cpp's flags, as tools/llama_cpp_flags.py says. `most_used` are the options of its
    short help. Options have no short forms but their own: neither `--pro` for `--prompt` nor `-ngl` for `-n gl`.
    """

    def __init__(
        self, *, most_used: str = "", add_help: bool = True, quiet: tuple[str, ...] = QUIET, **more: Any
    ) -> None:
        more |= {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False, "add_help": False}
        super().__init__(**more)
        self._most_used = set(most_used.split())
        self.details = ""  # a list of types that --help-all shows before the examples
        self._noted: set[str] = set()
        self._is_inner = False
        if not add_help:
            return
        flag: dict[str, Any] = {"nargs": 0, "dest": argparse.SUPPRESS, "default": argparse.SUPPRESS}
        self.add_argument("-h", "--help", action=_Help, **flag, help="show this help, or its most used options")
        self.add_argument("--help-all", action=_Help, **flag, help="show all options")
        self._quiet = quiet
        self.add_argument(*quiet, action="store_true", help="print results and errors only: no notes, no progress")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses `args`, in which options and other arguments may come in any order. Nothing is left over."""
        args = sys.argv[1:] if args is None else args
        if self.commands() or self._is_inner:
            return super().parse_known_args(args, namespace)
        if any(argument in self._quiet for argument in args):
            silence()  # before the first note
        if "-m" in self._option_string_actions:
            self._learn_llama_cpp_flags(args)
        self.usage = self.usage or self._one_line_usage()
        self._is_inner = True  # as the next line calls this function again
        try:
            found, rest = self.parse_known_intermixed_args(self._with_plain_flags(args), namespace)
        finally:
            self._is_inner = False
        if rest:
            self._refuse(rest[0])
        return found, rest

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")

    def note_once(self, text: str) -> None:
        if text not in self._noted:
            self._noted.add(text)
            note(text)

    def options(self) -> list[argparse.Action]:
        """The options and positional arguments that the help shows, in its order."""
        return [action for action in self._actions if action.help != argparse.SUPPRESS]

    def format_help_for(self, *, everything: bool) -> str:
        """The help text, with the most used options or all."""
        options = [action for action in self.options() if action.option_strings]
        is_short = not everything and bool(self._most_used) and len(options) > _SHOWN_IN_FULL
        hidden = [o for o in options if is_short and not self._most_used & {*o.option_strings}]
        texts, epilog = [action.help for action in hidden], self.epilog
        try:
            for action in hidden:
                action.help = argparse.SUPPRESS
            if is_short:
                more = f"all {len(options)} options" + (" and types" if self.details else "")
                self.epilog = f"{epilog}\n\n`{self.prog} --help-all` shows {more}."
            elif self.details:
                self.epilog = f"{self.details}\n\n{epilog}"
            return self.format_help()
        finally:
            self.epilog = epilog
            for action, text in zip(hidden, texts, strict=True):
                action.help = text

    def _one_line_usage(self) -> str:
        words = [str(action.metavar or action.dest) for action in self._get_positional_actions()]
        return " ".join(["%(prog)s [options]", *words])

    def commands(self) -> dict[str, tuple["CommandParser", str]]:
        """The parsers and the help of the commands that the first argument can name, such as record of gate."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
                return {name: (parser, helps[name]) for name, parser in action.choices.items()}
        return {}

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        """No option is meant by the start of its name or by a cluster of letters: argparse asks this for both."""
        return []

    def _with_plain_flags(self, args: Sequence[str]) -> list[str]:
        """The arguments with llama.cpp's `--n_prompt` as `--n-prompt`, with its optional switches given, and with the
        scale of an adapter joined to its file."""
        plain: list[str] = []
        for index, argument in enumerate(args):
            if argument == "--":
                return [*plain, *args[index:]]
            before = self._option_string_actions.get(args[index - 2]) if index > 1 else None
            if getattr(before, "takes_scale", False) and is_number(argument) and ":" not in plain[-1]:
                plain[-1] += f":{argument}"
                continue
            name, equals, value = argument.partition("=")
            name = name if name in self._option_string_actions else _dashed(name)
            plain.append(name + equals + value)
            action = self._option_string_actions.get(name)
            is_switch = isinstance(action, _IgnoredFlag) and action.flag.takes == "?" and not equals
            if is_switch and not set(args[index + 1 : index + 2]) & {*SWITCHES}:
                plain.append("auto")
        return plain

    def _refuse(self, argument: str) -> NoReturn:
        """Raises InputError for an argument that is left over."""
        if not argument.startswith("-"):
            raise InputError(f"{argument!r} is one argument too many; see {self.prog} --help")
        name = argument.partition("=")[0]
        close = get_close_matches(name, [*self._option_string_actions, *_KNOWN], n=1)
        raise InputError(
            f"no option {name!r}; " + (f"did you mean {close[0]!r}?" if close else f"see {self.prog} --help")
        )

    def _learn_llama_cpp_flags(self, args: Sequence[str]) -> None:
        """Adds those of the flags in `args` that this parser does not have and llama_cpp_flags.py knows."""
        own = self._option_string_actions
        asked = {_dashed(argument.partition("=")[0]) for argument in args if argument.startswith("-")} - {*own}
        if not asked:
            return
        for flag in (*IGNORED, *SAMPLING):
            spellings = flag.names.split()
            found = next((own[name] for name in spellings if name in own and flag.takes), None)
            for name in asked.intersection(spellings):
                if found is None:
                    self._add_flag(name, _IgnoredFlag, nargs=1 if flag.takes == "?" else flag.takes, flag=flag)
                else:
                    self._add_flag(name, _OtherSpelling, nargs=found.nargs, meant=found)
        for names in HAD:
            spellings = names.split()
            found = next((own[name] for name in spellings if name in own and _is_long(name, spellings)), None)
            for name in asked.intersection(spellings) - {*own}:
                if found is None:
                    self._add_flag(name, _RefusedFlag, why=f"`{self.prog}` does not have this option of llama.cpp")
                else:
                    self._add_flag(name, _OtherSpelling, nargs=found.nargs, meant=found)
        for names, instead in REFUSED:
            for name in asked.intersection(names.split()):
                self._add_flag(name, _RefusedFlag, why=f"lltool does not have this option of llama.cpp; {instead}")

    def _add_flag(self, name: str, action: type[argparse.Action], **what: Any) -> None:
        self.add_argument(name, action=action, dest=argparse.SUPPRESS, help=argparse.SUPPRESS, **what)


def _dashed(name: str) -> str:
    """`--n-prompt` for `--n_prompt`, which llama.cpp takes too."""
    return name.replace("_", "-") if name.startswith("--") else name


def _is_long(name: str, spellings: Sequence[str]) -> bool:
    """Whether a spelling tells which flag it is, as -p is a prompt in one program and a number in another."""
    return name.startswith("--") or not any(other.startswith("--") for other in spellings)


class _Help(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        print(parser.format_help_for(everything=option_string == "--help-all"), end="")
        parser.exit()


class _OtherSpelling(argparse.Action):
    """Another spelling of an option."""

    def __init__(self, *args: Any, meant: argparse.Action, **more: Any) -> None:
        more |= {"type": meant.type, "choices": meant.choices}
        super().__init__(*args, **more)
        self._meant = meant

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        self._meant(parser, namespace, values, option_string)


class _IgnoredFlag(argparse.Action):
    def __init__(self, *args: Any, flag: Ignored, **more: Any) -> None:
        super().__init__(*args, **more)
        self.flag = flag

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if self.flag.only and values[0] not in self.flag.only:
            raise InputError(
                f"{option_string} {values[0]}: lltool does not have this option of llama.cpp; "
                f"only {self.flag.only[0]} is accepted"
            )
        parser.note_once(f"{option_string}: ignored, as {self.flag.why}")


class _RefusedFlag(argparse.Action):
    def __init__(self, *args: Any, why: str, **more: Any) -> None:
        super().__init__(*args, **(more | {"nargs": "?"}))
        self._why = why

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        raise InputError(f"{option_string}: {self._why}")
