"""`lltool bench` on the command line: lists and ranges, refused options, and output."""

import csv
import io
import json
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from lltool.eval.bench.option_values import parse_numbers
from lltool.eval.bench.results.history import recall
from lltool.eval.bench.run.plan import TimedRun
from lltool.eval.bench.run.runner import Runner
from lltool.eval.bench.settings import SETTINGS, Workload
from lltool.gguf.errors import InputError
from lltool.tools.bench import main
from lltool.tools.bench_arguments import parse_arguments
from lltool.tools.cli import main as lltool
from tests.engine import tiny_gguf

pytestmark = pytest.mark.usefixtures("without_gpu")

MS = 1_000_000


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    return str(tiny_gguf.write_model(tmp_path / "tiny.gguf", tiny_gguf.metadata(), tiny_gguf.tensors()))


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every token takes a millisecond."""

    def run(self: Runner, workload: Workload) -> TimedRun:
        return TimedRun(workload.tokens * MS, workload.prompt * MS, (MS,) * workload.generation)

    monkeypatch.setattr(Runner, "run", run)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("4", [4]),
        ("1,2,8", [1, 2, 8]),
        ("1-4", [1, 2, 3, 4]),
        ("1-8+3", [1, 4, 7]),
        ("1-64*4", [1, 4, 16, 64]),
        ("3-20*2,7,0-1", [3, 6, 12, 7, 0, 1]),
        ("-1,99", [-1, 99]),
        ("-1-1", [-1, 0, 1]),
    ],
)
def test_ranges_are_those_of_llama_bench(text: str, values: list[int]) -> None:
    assert parse_numbers(text) == values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is not a number"),
        ("1,,2", "'' is not a number"),
        ("x", "'x' is not a number"),
        ("1-x", "'1-x' is not a number"),
        ("1.5", "'1.5' is not a number"),
        ("8-1", "'8-1' is not a rising range"),
        ("1-8+0", "is not a rising range"),
        ("1-8*1", "is not a rising range"),
        ("0-8*2", "is not a rising range"),
        ("1-999999999999", "has more than 10000 values"),
    ],
)
def test_bad_ranges_are_named(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_numbers(text)


@pytest.mark.parametrize(("text", "fraction"), [("2%", 0.02), ("2", 0.02), ("0.5%", 0.005)])
def test_until_is_in_percent(text: str, fraction: float) -> None:
    assert parse_arguments(["-m", "a", "--until", text]).until == pytest.approx(fraction)


def test_options_of_llama_bench_are_read() -> None:
    line = (
        "-m a,b --model c -p 1,2 -p 3 --n_gen 4 -pg 5,6 -pg 7,8 -d 0-64+32 -npl 1-4*2 -b 64 -ub 32,16 -ctk f16,f32 "
        "-ctv f16 -t 1-2 -C 0x1 --cpu-strict 0 --poll 50 -ngl 0,99 -ngl=-1 -ncmoe 1 -sm none,row -mg 0 -nkvo 0,1 "
        "-fa on,0,auto -dev none -lm mmap,none -lzm off -embd 0 -ts 3/1,0 -ot a=CPU;b=CPU,none -nopo 1 --no-host 0 "
        "--repack 0,1 -fitt 0 -fitc 0 -r 3 --prio -1 --delay 2 -o sql -oe json --progress --no-warmup --until 2%"
    )
    found = parse_arguments(line.split())
    expected = {
        "model": ["a,b", "c"],
        "n_prompt": [1, 2, 3],
        "n_gen": [4],
        "pg": [(5, 6), (7, 8)],
        "n_depth": [0, 32, 64],
        "n_parallel": [1, 2, 4],
        "ubatch": [32, 16],
        "type_k": ["f16", "f32"],
        "n_gpu_layers": [0, 99, -1],
        "split_mode": ["none", "row"],
        "no_kv_offload": [False, True],
        "flash_attn": [1, 0, -1],
        "load_mode": ["mmap", "none"],
        "tensor_split": ["3.00/1.00", "0.00"],
        "tensor_buft_overrides": ["a=CPU;b=CPU", "none"],
        "repack": [False, True],
        "prio": -1,
        "delay": 2,
        "until": 0.02,
        "format": "sql",
        "output": None,
        "output_err": "json",
    }
    assert {name: getattr(found, name) for name in expected} == expected
    assert all(getattr(parse_arguments(["-m", "a"]), setting.name) is None for setting in SETTINGS)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("-t 0", "threads 0, wanted 1 to 512"),
        ("-t -1", "argument -t/--threads"),
        ("-ctk q5_0 -ctv q8_0", "type_k q5_0, wanted f32 or f16"),
        ("-p 600", "pp600 needs a context of 600 tokens, but the model takes 512 at most"),
        ("-p 32 -n 0 -d 500", "pp32 @ d500 needs a context of 532"),
        ("-pg 500,13", r"pp500\+tg13 needs a context of 513"),
        ("-pg 500", "'500' is not a pair of numbers"),
        ("-p 0 -n 0", "nothing to measure"),
        ("-lm dio", "load_mode dio, wanted auto or none or mmap or mlock"),
        ("-fa off", "flash_attn 0"),
        ("-fa maybe", "'maybe' is not one of on"),
        ("-ngl 9 --strict", "-ngl 9: no GPU was found"),
        ("--until 0%", "'0%' is not a percentage such as 2% or 2"),
        ("--until nan", "'nan' is not a percentage"),
        ("--until 0.02", "'0.02' is not a percentage such as 2% or 2; below 1 % it needs its sign"),
        ("--delay -1", "'-1' is not a number of seconds"),
        ("--prio 9", "'9' is none of -1"),
        ("--poll 101", "poll 101, wanted 0 to 100"),
        ("-C 0xfg", "'0xfg' is not a mask of processors"),
        ("-nkvo 2", "'2' is not one of 0, 1"),
        ("-ts a/b", "'a/b' is not a list of shares"),
        ("-ot x", "'x' is not a list of NAME=BUFFER"),
        ("-o xml", "'xml' is not one of md, csv, json, jsonl, sql; wanted -o ./xml for a file"),
        ("-q -oe md", "-oe prints on stderr, which -q silences; leave one of them out"),
        ("--format xml", "invalid choice: 'xml'"),
        ("-r 0", "'0' is not a whole number of at least 1"),
        ("--plot x.gif", "'x.gif' is not the name of a .png or .svg file"),
        ("-m a.gguf,,b.gguf", "lacks the name of a file"),
        ("-m /nonexistent.gguf", "/nonexistent.gguf: no such file"),
    ],
)
def test_bad_options_give_one_line_before_anything_runs(
    tiny: str, line: str, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Runner, "__init__", None)  # nothing is loaded
    assert lltool(["bench", "-m", tiny, *line.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert re.search(message, err), err


def test_every_combination_becomes_a_row(tiny: str, timed: None, capsys: pytest.CaptureFixture[str]) -> None:
    line = "-p 8,16 -n 4 -pg 8,4 -d 0,64 -t 1,2 -ub 32 -r 2 --no-memory -o csv -oe jsonl"
    assert main(["-m", tiny, *line.split()]) == 0
    out, err = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(out)))
    tests = [("8", "0"), ("16", "0"), ("0", "4"), ("8", "4")]
    assert [(r["n_threads"], r["n_depth"], r["n_prompt"], r["n_gen"]) for r in rows] == [
        (threads, depth, *test) for threads in ("1", "2") for depth in ("0", "64") for test in tests
    ]
    assert {row["avg_ts"] for row in rows} == {"1000.0"}
    assert {row["n_ubatch"] for row in rows} == {"32"}
    on_stderr = [json.loads(line) for line in err.splitlines()]
    assert [row["n_gen"] for row in on_stderr] == [int(row["n_gen"]) for row in rows]


def test_layers_for_a_gpu_are_noted_and_what_runs_the_same_is_run_and_kept_once(
    tiny: str, timed: None, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["-m", tiny, "-p", "8", "-n", "4", "-r", "2", "--no-memory", "--json"]
    assert main([*line, "-ngl", "0,99", "-lm", "mmap,auto"]) == 0
    out, err = capsys.readouterr()
    rows = json.loads(out)
    assert [(row["n_gpu_layers"], row["load_mode"], row["n_prompt"]) for row in rows] == [
        (0, "mmap", 8), (0, "mmap", 0)
    ]  # fmt: skip
    assert err.splitlines() == [
        "lltool: note: -ngl 99: no GPU was found, all layers ran on the CPU",
        "lltool: note: -lm auto runs the same as -lm mmap, so the tests of both are run once",
        "lltool: note: -ngl 99 runs the same as -ngl 0, so the tests of both are run once",
    ]
    assert len(recall(home / ".cache" / "lltool" / "bench.sqlite")) == 2
    assert main([*line, "-ngl", "99"]) == 0
    assert [row["settings"]["asked"] for row in json.loads(capsys.readouterr().out)] == [{"n_gpu_layers": 99}] * 2


def test_results_are_kept_drawn_and_shown_again(
    tiny: str, timed: None, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot, line = tmp_path / "speed.svg", ["-m", tiny, "-p", "8", "-n", "4", "-r", "2", "-t", "1,2", "--no-memory"]
    assert main([*line, "--plot", str(plot), "-o", "sql"]) == 0
    with sqlite3.connect(":memory:") as database:
        database.executescript(capsys.readouterr().out)
        assert database.execute("SELECT count(*) FROM llama_bench").fetchone() == (4,)
    assert plot.read_text().startswith("<?xml")
    assert lltool(["bench", "history", "--test", "pp8", "-o", "csv"]) == 0
    assert len(list(csv.DictReader(io.StringIO(capsys.readouterr().out)))) == 2
    assert main([*line, "--db", str(tmp_path / "my.sqlite"), "--no-history"]) == 0
    assert not (tmp_path / "my.sqlite").exists()
    assert len(list(home.rglob("*.sqlite"))) == 1


def test_a_history_that_cannot_be_kept_is_reported_first(
    tiny: str, timed: None, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["bench", "-m", tiny, "-p", "8", "-n", "0", "-r", "1", "--no-memory", "--json"]
    home.write_text("not a folder")
    assert lltool(line) == 0
    out, err = capsys.readouterr()
    assert len(json.loads(out)) == 1
    assert err.startswith("lltool: note: results are not kept: ")
    assert lltool([*line, "--strict"]) == 2
    other = tmp_path / "other.sqlite"
    other.write_text("not a database")
    assert lltool([*line, "--db", str(other)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "other.sqlite: file is not a database" in err


def test_an_interrupt_prints_and_keeps_what_is_done(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left = [3]

    def count_down(self: Runner, workload: object) -> TimedRun:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return TimedRun(1000, 0)

    monkeypatch.setattr(Runner, "run", count_down)
    database = tmp_path / "kept.sqlite"
    line = ["bench", "-m", tiny, "-p", "8", "-n", "4", "--no-warmup", "-o", "jsonl", "--db", str(database)]
    assert lltool(line) == 130
    out, err = capsys.readouterr()
    assert sorted(len(json.loads(line)["samples_ns"]) for line in out.splitlines()) == [1, 2]
    assert err == "lltool: interrupted\n"
    assert lltool(["bench", "history", "--db", str(database), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2


def test_progress_is_reported_run_by_run(tiny: str, timed: None, capsys: pytest.CaptureFixture[str]) -> None:
    line = "-p 8 -n 0 -r 2 --no-warmup --no-memory --no-history --progress --until 50%"
    assert main(["-m", tiny, *line.split()]) == 0
    lines = [f"run {run} of 2: tiny.gguf, {what}" for run, what in ((1, "loading"), (1, "pp8"), (2, "pp8"))]
    assert capsys.readouterr().err.splitlines()[:3] == lines


def test_a_real_model_is_measured(real_model: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    model = str(real_model("smollm2-q4_1"))
    assert main(["-m", model, "-p", "8", "-n", "2", "-npl", "1,2", "-t", "1", "-r", "1", "-d", "3", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["n_parallel"], row["n_prompt"], row["n_gen"], row["n_depth"]) for row in rows] == [
        (1, 8, 2, 3), (2, 8, 2, 3),
    ]  # fmt: skip
    for row in rows:
        assert 0 < row["samples_prompt_ns"][0] < row["samples_ns"][0]
        assert row["ttft_ms"] == pytest.approx(row["samples_prompt_ns"][0] / 1e6)
        assert row["peak_rss_bytes"] is None or row["peak_rss_bytes"] > 10e6
        assert row["machine"]["build"]["version"]
