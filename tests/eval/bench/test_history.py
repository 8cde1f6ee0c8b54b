"""The history: it returns what it was given, also llama-bench's rows, and two writers lose no row."""

import json
import sqlite3
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lltool.eval.bench.results.history import default_database, find_drift, keep, recall
from lltool.eval.bench.results.rows import COLUMNS, LLAMA_BENCH_COLUMNS, complete_row, speed_of
from lltool.eval.bench.results.statistics import DRIFT_GUESS
from lltool.eval.bench.results.tables import format_sql
from lltool.gguf.errors import InputError
from lltool.tools.bench_history import main
from tests.eval.bench.made_rows import made_row


def times(*minutes: int) -> list[str]:
    return [f"2026-01-02T03:{minute:02}:00Z" for minute in minutes]


def test_rows_come_back_as_they_were_kept(tmp_path: Path) -> None:
    rows = [
        made_row(
            0, 64, notes=["drift"], settings={"precision": "int8"}, machine={"cores": 2}, flash_attn=1, repack=False
        ),
        made_row(512, 0, n_parallel=4),
    ]
    path = tmp_path / "bench.sqlite"
    keep(path, rows)
    assert recall(path) == rows
    frame = recall(path).to_pandas()
    assert list(frame) == ["test", *COLUMNS]
    assert frame.test.tolist() == ["tg64", "pp512 x 4"]
    assert frame.notes.tolist() == [["drift"], []]
    database = sqlite3.connect(path)
    names = [row[1] for row in database.execute("PRAGMA table_info(llama_bench)")]
    assert names == list(LLAMA_BENCH_COLUMNS)
    assert database.execute("SELECT n_gen, avg_ts, repack FROM llama_bench").fetchall() == [(64, 100.0, 0)]
    assert database.execute("PRAGMA user_version").fetchone() == (1,)


def test_rows_are_chosen_by_model_test_and_age(tmp_path: Path) -> None:
    path = tmp_path / "bench.sqlite"
    for time in reversed(times(1, 2, 3)):
        keep(path, [made_row(512, 0, test_time=time), made_row(0, 64, test_time=time, model_type="qwen2 494M Q4_K_M")])
    assert [row.test_time for row in recall(path, test="pp512")] == times(1, 2, 3)
    assert {row.model_type for row in recall(path, model="QWEN")} == {"qwen2 494M Q4_K_M"}
    assert len(recall(path, model="m-q4_0.gguf")) == 6
    assert [row.test_time for row in recall(path, last=2)] == [time for time in times(2, 3) for _ in range(2)]
    assert recall(path, test="pp1") == []
    keep(path, [made_row(0, 64, n_depth=4096)])
    assert len(recall(path, test="tg64@d4096")) == len(recall(path, test="tg64 @ d4096")) == 1


def test_rows_of_llama_bench_stand_beside_ours(tmp_path: Path) -> None:
    """`llama-bench -o sql | sqlite3 FILE` adds to a history, and a history can start in llama-bench's file."""
    path = tmp_path / "bench.sqlite"
    theirs = {name: made_row().column(name) for name in LLAMA_BENCH_COLUMNS}
    theirs |= {
        "build_commit": "fedcba98",
        "avg_ts": 50.0,
    }
    old = {name: type for name, type in LLAMA_BENCH_COLUMNS.items() if name != "n_depth"}  # as in older versions
    database = sqlite3.connect(path)
    database.execute(f"CREATE TABLE llama_bench ({', '.join(old)})")
    database.execute(f"INSERT INTO llama_bench VALUES ({', '.join('?' for _ in old)})", [theirs[name] for name in old])
    database.commit()
    assert [row.avg_ts for row in recall(path)] == [50.0]
    keep(path, [made_row()])
    found = recall(path)
    assert [(row.engine, row.build_commit, row.n_depth) for row in found] == [
        ("lltool 0.1.0", "0123abcd", 0),
        ("llama.cpp", "fedcba98", 0),
    ]
    assert found[1].median_ts is None


def test_sql_output_is_a_history(tmp_path: Path) -> None:
    path, rows = tmp_path / "bench.sqlite", [made_row(), made_row(0, 64)]
    database = sqlite3.connect(path)
    database.executescript(format_sql(rows))
    database.commit()
    assert recall(path) == rows


def add_rows(arguments: tuple[Path, int]) -> None:
    path, writer = arguments
    for number in range(8):
        keep(path, [made_row(build_number=100 * writer + number)] * 3)


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bench.sqlite"
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(add_rows, [(path, 1), (path, 2)]))
    numbers = sorted(row.build_number for row in recall(path))
    assert numbers == sorted([100 * writer + number for writer in (1, 2) for number in range(8)] * 3)


def a_database(path: Path, *statements: str) -> None:
    database = sqlite3.connect(path)
    for statement in statements:
        database.execute(statement)
    database.commit()


@pytest.mark.parametrize(
    ("statements", "message"),
    [
        (["CREATE TABLE users (name TEXT)"], "not a history: the database has a table users"),
        (
            ["CREATE TABLE lltool_bench (x)", "PRAGMA user_version = 7"],
            "a history of version 7, but this lltool reads version 1",
        ),
        (["CREATE TABLE llama_bench (avg_ts)", "INSERT INTO llama_bench VALUES (1)"], "row 1: has no model_filename"),
    ],
)
def test_foreign_files_give_one_line(tmp_path: Path, statements: list[str], message: str) -> None:
    path = tmp_path / "bench.sqlite"
    a_database(path, *statements)
    before = path.read_bytes()
    with pytest.raises(InputError, match=message):
        recall(path)
    if "row 1" not in message:
        with pytest.raises(InputError, match=message):
            keep(path, [made_row()])
        assert path.read_bytes() == before


def test_corrupt_missing_and_unwritable_files_give_one_line(tmp_path: Path) -> None:
    path = tmp_path / "bench.sqlite"
    with pytest.raises(InputError, match="there is no history yet"):
        recall(path)
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(InputError, match=r"bench.sqlite: file is not a database; wanted a history"):
        recall(path)
    with pytest.raises(InputError, match="file is not a database"):
        keep(path, [made_row()])
    keep(tmp_path / "good.sqlite", [made_row(build_number=n) for n in range(200)])
    whole = (tmp_path / "good.sqlite").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="malformed"):
        recall(path)
    with pytest.raises(InputError, match=r"row 3: n_threads is 'two', wanted INTEGER"):
        complete_row(made_row().columns() | {"n_threads": "two"}, "row 3")


def test_command_lists_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bench.sqlite"
    keep(path, [made_row(p, g, test_time=time) for time in times(1, 2) for p, g in ((512, 0), (0, 64))])
    arguments = ["--db", str(path), "--test", "tg64"]
    what = "lltool 0.1.0 | 0123abcd | llama 135M Q4_0 | tg64"
    assert main([*arguments, "--plot", str(tmp_path / "x.svg")]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[2:] == [
        f"| 2026-01-02 03:0{minute}:00 | {what} |       2 | {speed_of(made_row(0, 64))} |" for minute in (1, 2)
    ]
    assert (tmp_path / "x.svg").exists()
    assert "x.svg" in err
    assert main([*arguments, "--json"]) == 0
    assert [row["n_gen"] for row in json.loads(capsys.readouterr().out)] == [64, 64]
    assert main([*arguments, "-o", "csv", "--last", "1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    with pytest.raises(InputError, match="nothing to plot"):
        main(["--db", str(path), "--test", "pp1", "--plot", str(tmp_path / "y.png")])
    assert default_database().name == "bench.sqlite"


@pytest.mark.rival
def test_compare_llama_bench_reads_the_file(tmp_path: Path, compare_script: Path) -> None:
    path = tmp_path / "bench.sqlite"
    for build, speed in (("0123abcd", 100.0), ("fedcba98", 150.0)):
        keep(path, [made_row(build_commit=build, avg_ts=speed)])
    command = [sys.executable, str(compare_script), "-i", str(path), "-b", "0123abcd", "-c", "fedcba98"]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "| llama 135M Q4_0 | pp512 | 100.00 | 150.00 | 1.50 |" in " ".join(found.stdout.split())


@pytest.fixture
def compare_script() -> Path:
    """llama.cpp's own script, if its source lies beside the repository; it needs GitPython and tabulate."""
    pytest.importorskip("git")
    pytest.importorskip("tabulate")
    found = sorted(Path(__file__).resolve().parents[4].glob("*/src/*/vendor/llama.cpp/scripts/compare-llama-bench.py"))
    if not found:
        pytest.skip("needs llama.cpp's scripts/compare-llama-bench.py")
    return found[0]


def test_drift_is_learnt_from_quiet_runs_of_one_build_on_this_machine(tmp_path: Path) -> None:
    path, here = tmp_path / "bench.sqlite", {"cpu": "x", "cores": 2, "is_virtual": True}
    guess = find_drift(path, here)
    assert guess == pytest.approx(DRIFT_GUESS["virtual"])

    def remember(machine: dict[str, object], *speeds: float, **columns: Any) -> None:
        rows = [made_row(speeds=(s,) * 5, machine=machine, median_ts=s, low_ts=s, high_ts=s, **columns) for s in speeds]
        keep(path, [replace(row, test_time=time) for row, time in zip(rows, times(*range(len(rows))), strict=True)])

    remember(here, 100, 200, 300, notes=["busy machine: threads waited for a core 31% of the time"])
    remember(here | {"cores": 4}, 100, 200, 300)
    for build in ("a", "b"):
        remember(here, 100, build_commit=build)
    assert find_drift(path, here) == guess  # none of these shows how runs differ
    remember(here, *[100, 120] * 10, build_commit="c")
    # All lie half of log 1.2 from their median, as in a normal distribution of 0.139; with the guess it is 0.129.
    assert find_drift(path, here) == pytest.approx(0.129, abs=0.001)
