"""Comparisons of results: which rows match, how large and how certain a difference is, and what a limit does."""

import csv
import io
import json
import random
import sqlite3
from dataclasses import replace
from math import exp, hypot, log
from pathlib import Path

import pytest

from lltool.eval.bench.results.compare import compare_rows, format_comparison
from lltool.eval.bench.results.read import read_rows
from lltool.eval.bench.results.rows import LLAMA_BENCH_COLUMNS, ResultRow, complete_row, speed_of
from lltool.eval.bench.results.statistics import estimate_drift
from lltool.eval.bench.results.tables import FORMATS
from lltool.gguf.errors import InputError
from lltool.tools.bench_compare import main
from tests.eval.bench.made_rows import made_row

SLOWER = (79.0, 80.0, 81.0, 80.0, 80.0)


def test_difference_and_its_error_come_from_both_intervals() -> None:
    a, b = made_row(), made_row(speeds=SLOWER)
    (found,) = compare_rows([a], [b]).differences
    assert (found.name, found.verdict, found.is_paired) == ("pp512", "slower", False)
    assert found.change == pytest.approx(-0.2)
    x, y = speed_of(a), speed_of(b)
    assert found.low == pytest.approx(0.8 * exp(-hypot(log(80 / y.low), log(x.high / 100))) - 1)
    assert found.high == pytest.approx(0.8 * exp(hypot(log(y.high / 80), log(100 / x.low))) - 1)
    (back,) = compare_rows([b], [a]).differences
    assert (back.verdict, back.change) == ("faster", pytest.approx(0.25))
    assert 1 + back.low == pytest.approx(1 / (1 + found.high))
    (same,) = compare_rows([a], [made_row(speeds=(98.0, 99.0, 100.0, 99.5, 99.5))]).differences
    assert same.verdict == "no difference seen"
    frame = compare_rows([a], [b]).to_pandas()
    assert frame.loc[0, ["name", "verdict", "a_ts", "b_ts", "low"]].tolist() == ["pp512", "slower", 100, 80, found.low]
    (one,) = compare_rows([a], [made_row(speeds=(50.0,))]).differences
    assert (one.verdict, one.change, one.low) == ("a single run", -0.5, -0.5)


def test_without_samples_the_error_is_the_deviation_if_there_is_one() -> None:
    columns = {name: made_row().column(name) for name in LLAMA_BENCH_COLUMNS} | {"avg_ts": 100.0, "stddev_ts": 2.0}
    speed = speed_of(complete_row(columns, ""))
    drift = estimate_drift((), is_virtual=True)
    assert speed.kind.startswith("mean ± 2 standard deviations")
    assert (speed.middle, speed.high / 100, 100 / speed.low) == (
        100,
        *[pytest.approx(exp(1.96 * hypot(0.02, drift)))] * 2,
    )
    assert not speed_of(complete_row(columns | {"stddev_ts": 0.0}, "")).is_known


def test_rows_that_ran_in_turns_are_compared_in_pairs() -> None:
    """The machine halves its speed in the middle, and pairs still show a difference of 10 %."""
    speeds = (100.0, 101.0, 99.0, 50.0, 51.0, 49.0)
    a = made_row(speeds=speeds, settings={"session": "x"})
    b = made_row(speeds=tuple(0.9 * speed for speed in speeds), settings={"session": "x"})
    (found,) = compare_rows([a], [b]).differences
    assert (found.verdict, found.is_paired, found.change) == ("slower", True, pytest.approx(-0.1))
    (alone,) = compare_rows([a], [replace(b, settings={"session": "y"})]).differences
    assert (alone.verdict, alone.is_paired) == ("no difference seen", False)


def test_equal_speeds_seem_different_one_time_in_twenty_at_most() -> None:
    """Speeds vary by 3 % between runs and 3 % within them, as the statistics assume for an unknown machine."""
    rng = random.Random(1)

    def run() -> ResultRow:
        level = 100 * exp(rng.gauss(0, 0.03))
        return made_row(speeds=tuple(level * exp(rng.gauss(0, 0.03)) for _ in range(5)))

    verdicts = [compare_rows([run()], [run()]).differences[0].verdict for _ in range(400)]
    assert sum(verdict != "no difference seen" for verdict in verdicts) <= 0.05 * 400


def test_rows_are_matched_by_the_settings_that_vary() -> None:
    a = [made_row(p, 0, n_threads=t, n_batch=2048) for p in (128, 512) for t in (1, 2)]
    b = [made_row(p, 0, n_threads=t, n_batch=512) for p in (512, 256) for t in (2, 1, 4)]
    found = compare_rows(a, b)
    assert [d.name for d in found.differences] == ["pp512, threads 1", "pp512, threads 2"]
    assert [(d.a.ran["n_threads"], d.b.ran["n_threads"], d.b.n_prompt) for d in found.differences] == [
        (1, 1, 512),
        (2, 2, 512),
    ]
    assert found.only_a == ("pp128, threads 1", "pp128, threads 2")
    assert found.only_b == tuple(f"pp{p}, threads {t}" for p, ts in ((512, (4,)), (256, (2, 1, 4))) for t in ts)
    assert found.between == {"n_batch": (2048, 512)}
    text = format_comparison(found, ("a.json", "b.json"))
    assert "- A and B as a whole differ in n_batch (2048, 512)" in text
    assert "- only in A: pp128, threads 1" in text


def test_settings_with_one_value_in_each_file_are_compared_and_named() -> None:
    a = made_row(model_filename="x/m-q4_0.gguf", model_sha256="11", flash_attn=-1)
    b = made_row(model_filename="y/m-q8_0.gguf", model_sha256="22", flash_attn=None, engine="llama.cpp 0c1e570 repack")
    found = compare_rows([a], [b])
    assert found.between == {
        "engine": ("lltool", "llama.cpp repack"),
        "model": ("m-q4_0.gguf", "m-q8_0.gguf"),
        "engine_version": ("lltool 0.1.0", "llama.cpp 0c1e570 repack"),
        "model_sha256": ("11", "22"),
    }
    both = [a, replace(a, engine="other 1", test_time="2026-01-03")]
    assert [d.name for d in compare_rows(both, [replace(a, engine="other 2")]).differences] == ["other, pp512"]
    assert compare_rows(both, [a, b]).only_a == ("m-q4_0.gguf, other, pp512",)


def test_of_rows_with_the_same_settings_the_latest_counts() -> None:
    days = [made_row(speeds=(s, s + 1, s + 2), test_time=f"2026-01-0{d}") for s, d in ((50.0, 3), (70.0, 1), (60.0, 2))]
    found = compare_rows(days, [made_row()])
    assert (len(found.differences), found.differences[0].a.median_ts, found.older) == (1, 51.0, 2)
    assert compare_rows([made_row()] * 2, [made_row()]).older == 0  # one run that was asked for in two ways


@pytest.mark.parametrize("form", ["json", "jsonl", "csv", "sqlite"])
@pytest.mark.parametrize("is_ours", [True, False])
def test_files_of_every_form_are_read(tmp_path: Path, form: str, is_ours: bool) -> None:
    """Our files hold everything; llama-bench's CSV and SQL have no samples, and none of our columns."""
    rows = [made_row(flash_attn=1, repack=False, no_host=True), made_row(0, 64)]
    path = tmp_path / "results"
    names = [*LLAMA_BENCH_COLUMNS, *(("samples_ns", "samples_ts") if form.startswith("json") else ())]
    values = [row.columns() for row in rows]
    theirs = [{name: int(r[name]) if isinstance(r[name], bool) else r[name] for name in names} for r in values]
    if form == "sqlite":
        text = FORMATS["sql"](rows)
        with sqlite3.connect(path) as database:
            database.executescript(text if is_ours else text.replace("lltool_bench", "other"))
    elif is_ours:
        path.write_text(FORMATS[form](rows))
    elif form == "csv":
        text_file = io.StringIO()
        writer = csv.DictWriter(text_file, names, quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(theirs)
        path.write_text(text_file.getvalue())
    else:
        path.write_text(json.dumps(theirs) if form == "json" else "\n".join(map(json.dumps, theirs)))
    found = read_rows(path)
    assert [row.n_gen for row in found] == [0, 64]
    assert found[0].ran["no_host"] is True
    if is_ours:
        assert found == rows
    else:
        assert found[0].engine == "llama.cpp"
        middle = speed_of(found[0])
        assert (middle.middle, middle.is_known) == (100, True)
        assert found == [complete_row({n: row[n] for n in names}, "") for row in values]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "begins with ''; wanted JSON"),
        ("hello", "begins with 'hello'; wanted JSON"),
        ("[1, 2]", "not a list of rows"),
        ('[{"avg_ts": ', "invalid JSON: "),
        ("[]", "holds no results"),
        ('{"a": 1}\n{"b": 2}', "row 1: has no model_filename; wanted results of `lltool bench`"),
        ("CREATE TABLE IF NOT EXISTS x", "holds SQL statements; make a database from them: sqlite3"),
        ("a,avg_ts\n1,2,3\n", "row 1: has no model_filename"),
        ("[" * 100_000, "invalid JSON: "),
    ],
)
def test_files_without_results_give_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_rows(path)


def test_wrong_values_and_bytes_give_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not a text file"):
        read_rows(path)
    for name, value, message in (
        ("n_threads", "two", "n_threads is 'two', wanted INTEGER"),
        ("avg_ts", -1, "a speed is not above 0"),
        ("avg_ts", "nan", "a speed is not above 0"),
        ("samples_ts", [1, 0], "a speed is not above 0"),
        ("samples_ts", "[1", "samples_ts is '\\[1', wanted JSON"),
        ("samples_ts", ["x"], "samples_ts is \\['x'\\], wanted numbers"),
        ("settings", "[]", "settings is \\[\\], wanted an object"),
        ("low_ts", 200, "low_ts 200.0, median_ts 100.0, high_ts"),
    ):
        path.write_text(json.dumps([made_row().columns() | {name: value}]))
        with pytest.raises(InputError, match=f"row 1: {message}"):
            read_rows(path)


def test_command_fails_past_the_limit_if_the_error_is_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = {}
    for name, speeds in (
        ("a", (99.0, 100.0, 101.0, 100.0, 100.0)),
        ("b", SLOWER),
        ("noisy", (20.0, 80.0, 99.0, 101.0, 60.0)),
    ):
        paths[name] = tmp_path / f"{name}.json"
        paths[name].write_text(json.dumps([made_row(speeds=speeds).columns(), made_row(0, 64).columns()]))
    arguments = [str(paths["a"]), str(paths["b"])]
    assert main(arguments) == 0
    assert "| pp512 | slower " in capsys.readouterr().out
    assert main([*arguments, "--limit", "25%"]) == 0
    assert main([*arguments, "--limit", "5%", "--plot", str(tmp_path / "x.png")]) == 1
    assert "lltool: note: pp512: -20.0 %, the limit is -5.0%" in capsys.readouterr().err
    assert (tmp_path / "x.png").exists()
    assert main([str(paths["a"]), str(paths["noisy"]), "--limit", "5%"]) == 0
    capsys.readouterr()
    assert main([*arguments, "--limit", "5", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["beyond_limit"], [d["verdict"] for d in report["differences"]]) == (
        ["pp512"],
        ["slower", "no difference seen"],
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.json"], "arguments are required: B"),
        (["a.json", "a.json", "--limit", "much"], "'much' is not a percentage such as 5%"),
        (["a.json", "a.json", "--plot", "x.gif"], "'x.gif' is not the name of a .png or .svg"),
        (["a.json", "missing.json"], "No such file"),
        (["a.json", "b.json"], "the two have no row with the same settings: pp512 against tg64"),
    ],
)
def test_what_cannot_be_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.json").write_text(json.dumps([made_row().columns()]))
    Path("b.json").write_text(json.dumps([made_row(0, 64).columns()]))
    with pytest.raises((InputError, OSError), match=message):
        main(arguments)
