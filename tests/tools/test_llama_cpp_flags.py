"""llama.cpp's flags: every command takes them, ignores them with a note, or refuses them by their names."""

import importlib
from pathlib import Path

import pytest

from lltool.gguf.errors import InputError
from lltool.tools import cli
from lltool.tools.llama_cpp_flags import HAD, IGNORED, REFUSED, SAMPLING
from lltool.tools.parser import CommandParser

TABLE = [*HAD, *(flag.names for flag in (*IGNORED, *SAMPLING, *REFUSED))]
KNOWN = [name for names in TABLE for name in names.split()]
COMMANDS = {
    "llama-cli": "run",
    "llama-perplexity": "perplexity",
    "llama-imatrix": "imatrix",
    "llama-tokenize": "tokenize",
    "llama-bench": "bench",
    "llama-quantize": "quantize",
}
WITH_MODEL = (*COMMANDS.values(), "inspect", "export", "recommend")


def programs() -> dict[str, list[list[str]]]:
    """The spellings of each flag of each program."""
    path = Path(__file__).parent.parent / "golden" / "llama_cpp_flags.txt"
    found: dict[str, list[list[str]]] = {}
    program = ""
    for line in path.read_text().splitlines():
        if line.startswith("  "):
            found[program].append(line.split())
        elif line and not line.startswith("#"):
            program = line
            found[program] = []
    return found


def parser_of(command: str) -> CommandParser:
    parser: CommandParser = importlib.import_module(f"lltool.tools.{cli.COMMANDS[command].module}").parser()
    return parser


def options_of(command: str) -> set[str]:
    return {name for option in parser_of(command).options() for name in option.option_strings}


def test_the_table_has_each_spelling_once() -> None:
    assert sorted(KNOWN) == sorted(set(KNOWN))


@pytest.mark.parametrize("program", COMMANDS)
def test_every_flag_is_known(program: str) -> None:
    flags = programs()[program]
    assert len(flags) > 5
    missing = [name for flag in flags for name in flag if name not in {*KNOWN, *options_of(COMMANDS[program])}]
    assert missing == ["--version"] * missing.count("--version")


@pytest.mark.parametrize("command", WITH_MODEL)
def test_no_flag_is_taken_for_another(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each flag is read as the command's own option, noted by its name, or refused by its name."""
    own = options_of(command)
    needed = {"tokenize": ["-p", "x"], "export": ["-o", "x"]}
    for name in {*KNOWN} - own:
        parser = parser_of(command)
        try:
            parser.parse_args(["model.gguf", *needed.get(command, []), name, "1"])
        except InputError as error:
            spellings = next(names for names in TABLE if name in names.split())
            said = str(error)
            assert said.startswith((name, "argument ")) or "one argument too many" in said
            assert any(spelling in said for spelling in spellings.split()) or "too many" in said, (name, said)
        except SystemExit:
            assert name == "--usage"
        else:
            note = capsys.readouterr().err
            is_other_spelling = any({*names.split()} & own for names in TABLE if name in names.split())
            assert is_other_spelling or note.startswith(f"lltool: note: {name}: ignored, as "), (name, note)


LINE = "m.gguf -ts 1 -ts 2 -fa -fa on --tensor_split 3 hello"


def test_a_flag_is_noted_once_however_often_it_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = parser_of("run").parse_args(LINE.split())
    assert capsys.readouterr().err.splitlines() == [
        "lltool: note: -ts: ignored, as it has no effect here; -ngl and --device say what runs on a GPU",
        "lltool: note: -fa: ignored, as attention never holds the whole matrix, which is what flash attention is for",
        "lltool: note: --tensor-split: ignored, as it has no effect here; -ngl and --device say what runs on a GPU",
    ]
    assert (arguments.words, arguments.predict) == (["m.gguf", "hello"], -1)


@pytest.mark.parametrize("line", ["-fa", "-fa on", "-fa auto", "--flash-attn 0", "-fa=off"])
def test_a_switch_may_be_left_out(line: str) -> None:
    assert parser_of("run").parse_args([*line.split(), "m.gguf"]).words == ["m.gguf"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("-ts", "argument -ts: expected 1 argument"),
        ("-n 5 -mirostat 2", "no option '-mirostat'; did you mean '--mirostat'?"),
        ("--promt x", "no option '--promt'; did you mean '--prompt'?"),
        ("--xyzzy", "no option '--xyzzy'; see lltool run --help"),
        ("--promp x", "no option '--promp'; did you mean '--prompt'?"),
        ("-n5", "no option '-n5'; did you mean '-n'?"),
        ("--reasoning on", "--reasoning on: lltool does not have this option of llama.cpp; only auto"),
        (
            "--control-vector x",
            "--control-vector: lltool does not have this option of llama.cpp; lltool has no control",
        ),
        ("--hellaswag", "--hellaswag: `lltool run` does not have this option of llama.cpp"),
    ],
)
def test_what_is_not_there_is_named(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "m.gguf", *line.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"lltool: error: {message}")
    assert err.count("\n") == 1


def test_sampling_is_ignored_where_nothing_is_sampled(capsys: pytest.CaptureFixture[str]) -> None:
    line = "m.gguf -f x --temp 0.3 --mirostat 2 --seed 1 --repeat-penalty 1.1"
    assert parser_of("perplexity").parse_args(line.split()).words == ["m.gguf"]
    notes = capsys.readouterr().err.splitlines()
    assert notes == [
        f"lltool: note: {name}: ignored, as nothing is sampled here"
        for name in ("--temp", "--mirostat", "--seed", "--repeat-penalty")
    ]


def test_quiet_leaves_notes_out(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.main(["run", "none.gguf", "-ngl", "99", "-p", "x", "-q"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("lltool: error: none.gguf: no such file")
    assert err.count("\n") == 1
