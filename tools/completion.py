"""`lltool completion`: scripts that complete commands, options and their values in a shell, made from the parsers."""

import importlib
from collections.abc import Iterator
from typing import NamedTuple

from lltool.tools.arguments import command_parser
from lltool.tools.parser import CommandParser

SHELLS = ("bash", "zsh", "fish")
EXAMPLES = """
source <(lltool completion bash)                                            # now; in ~/.bashrc: always
lltool completion zsh > "${fpath[1]}/_lltool"
lltool completion fish > ~/.config/fish/completions/lltool.fish
"""


class Option(NamedTuple):
    """All spellings of an option, its help, and the values that it takes; `takes_value` may be true without choices."""

    names: tuple[str, ...]
    help: str
    takes_value: bool
    choices: tuple[str, ...]


class Command(NamedTuple):
    """A command such as "run" or "gate record", its help, its options, and the names that can follow it.

    Where `takes_files` is true, the name of a file can stand in place of one of `commands`.
    """

    name: str
    help: str
    options: tuple[Option, ...]
    commands: tuple[str, ...] = ()
    takes_files: bool = False


def parser() -> CommandParser:
    parser = command_parser(
        "completion", "Prints a script that completes lltool's commands, options and their values.", EXAMPLES
    )
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))
    return parser


def main(argv: list[str]) -> int:
    write = {"bash": _bash, "zsh": _zsh, "fish": _fish}[parser().parse_args(argv).shell]
    print("\n".join(write(find_commands())))
    return 0


def find_commands() -> list[Command]:
    """All commands and what their parsers know, without llama.cpp's flags that a command does not have."""
    from lltool.tools.cli import COMMANDS

    found = []
    for name, (module, help) in COMMANDS.items():
        parser: CommandParser = importlib.import_module(f"lltool.tools.{module}").parser()
        inner = parser.commands()
        nested = [other.removeprefix(f"{name} ") for other in COMMANDS if other.startswith(f"{name} ")]
        found.append(_describe(name, help, parser, (*inner, *nested)))
        found += [_describe(f"{name} {inside}", text, of) for inside, (of, text) in inner.items()]
    names = tuple(command.name for command in found if " " not in command.name)
    return [*found, Command("help", "explain a command", (), names)]


def _describe(name: str, help: str, parser: CommandParser, commands: tuple[str, ...] = ()) -> Command:
    options = [
        Option(tuple(o.option_strings), str(o.help).partition(";")[0], o.nargs != 0, tuple(map(str, o.choices or ())))
        for o in parser.options()
        if o.option_strings
    ]
    return Command(name, help, tuple(options), commands, not parser.commands())


def _bash(commands: list[Command]) -> Iterator[str]:
    yield "_lltool() {"
    yield '    local current="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD-1]}" words=""'
    yield '    local command="${COMP_WORDS[1]}"'
    yield '    if ((COMP_CWORD > 2)); then case "$command ${COMP_WORDS[2]}" in'
    yield f'        {_patterns(c.name for c in commands if " " in c.name)}) command="$command ${{COMP_WORDS[2]}}";;'
    yield "    esac; fi"
    yield "    if ((COMP_CWORD == 1)); then"
    yield f'        words="{" ".join(c.name for c in commands if " " not in c.name)} --help --version"'
    yield '    elif [[ $current == -* ]]; then case "$command" in'
    for command in commands:
        yield f'        "{command.name}") words="{" ".join(n for option in command.options for n in option.names)}";;'
    yield '    esac; else case "$command $previous" in'
    for command in commands:
        for option in command.options:
            if option.choices:
                names = _patterns(f"{command.name} {name}" for name in option.names)
                yield f'        {names}) words="{" ".join(option.choices)}";;'
        if command.commands:
            files = ' $(compgen -f -- "$current")' if command.takes_files else ""
            yield f'        "{command.name} {command.name}") words="{" ".join(command.commands)}{files}";;'
    yield f'        "completion completion") words="{" ".join(SHELLS)}";;'
    yield "    esac; fi"
    yield '    COMPREPLY=($(compgen -W "$words" -- "$current"))  # if it is empty, bash completes names of files'
    yield "}"
    yield "complete -o default -F _lltool lltool"


def _zsh(commands: list[Command]) -> Iterator[str]:
    yield "#compdef lltool"
    yield "_lltool() {"
    yield '    local command="${words[2]}"; local -a found'
    yield '    if (( CURRENT > 3 )); then case "$command ${words[3]}" in'
    yield f'        ({_patterns(c.name for c in commands if " " in c.name)}) command="$command ${{words[3]}}";;'
    yield "    esac; fi"
    yield "    if (( CURRENT == 2 )); then"
    yield f"        found=({' '.join(_quote(f'{c.name}:{c.help}') for c in commands if ' ' not in c.name)})"
    yield "        _describe command found; return"
    yield "    fi"
    yield '    if [[ ${words[CURRENT]} == -* ]]; then case "$command" in'
    for command in commands:
        items = " ".join(_quote(f"{name}:{option.help}") for option in command.options for name in option.names)
        yield f'        ("{command.name}") found=({items});;'
    yield "    esac; _describe -o option found; return; fi"
    yield '    case "$command ${words[CURRENT-1]}" in'
    for command in commands:
        for option in command.options:
            if option.choices:
                names = _patterns(f"{command.name} {name}" for name in option.names)
                yield f"        ({names}) compadd -- {' '.join(option.choices)}; return;;"
        if command.commands:
            more = "" if command.takes_files else " return;"
            yield f'        ("{command.name} {command.name}") compadd -- {" ".join(command.commands)};{more};'
    yield f'        ("completion completion") compadd -- {" ".join(SHELLS)}; return;;'
    yield "    esac"
    yield "    _files"
    yield "}"
    yield 'if [[ "$funcstack[1]" == _lltool ]]; then _lltool "$@"; else compdef _lltool lltool; fi'


def _fish(commands: list[Command]) -> Iterator[str]:
    for command in commands:
        outer, _, inner = command.name.partition(" ")
        if inner:
            seen = f"__fish_seen_subcommand_from {outer}; and __fish_seen_subcommand_from {inner}"
        else:
            seen = f"__fish_seen_subcommand_from {outer}"
            what = f"-a {outer} -d {_quote(command.help)}"
            yield f"complete -c lltool -f -n __fish_use_subcommand {what}"
        if command.commands:
            yield f"complete -c lltool -n {_quote(seen)} -a {_quote(' '.join(command.commands))}"
        for option in command.options:
            names = " ".join(_fish_name(name) for name in option.names)
            value = f" -x -a {_quote(' '.join(option.choices))}" if option.choices else " -r" * option.takes_value
            yield f"complete -c lltool -n {_quote(seen)} {names} -d {_quote(option.help)}{value}"
    yield f"complete -c lltool -f -n '__fish_seen_subcommand_from completion' -a {_quote(' '.join(SHELLS))}"


def _fish_name(name: str) -> str:
    """The option of fish's `complete` for a long, a short, or an old name, which has several letters after one dash."""
    if name.startswith("--"):
        return f"-l {name[2:]}"
    return f"-s {name[1:]}" if len(name) == 2 else f"-o {name[1:]}"


def _patterns(names: Iterator[str]) -> str:
    return "|".join(f'"{name}"' for name in names)


def _quote(text: str) -> str:
    return "'" + text.replace("'", "’") + "'"  # a typographic apostrophe needs no quoting in any shell
