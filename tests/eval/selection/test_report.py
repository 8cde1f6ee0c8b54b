"""Reports: what is read from results, the numbers in the tables, the Pareto front, the page, and the plots."""

import csv
import io
import json
from dataclasses import replace
from html.parser import HTMLParser
from itertools import combinations
from math import nan
from pathlib import Path
from typing import Any

import pytest

from lltool import __version__
from lltool.eval.common.figure import picture
from lltool.eval.common.names import short_names
from lltool.eval.selection.report import (
    decode_speeds,
    format_csv,
    format_markdown,
    format_page,
    front_of,
    losses,
    main_table,
    plots,
    plus_minus,
    speed_table,
    text_tables,
    write_report,
)
from lltool.eval.selection.report_plot import Plot, PlottedFile, draw_png, draw_svg, family_of, front, place_names
from lltool.eval.selection.runs import Quality, Runs, gather, read_runs
from lltool.gguf.errors import InputError
from tests.eval.drawn_texts import misplaced_texts

MIB = 1 << 20

# Name: MiB, perplexity, its error, divergence, its error, tokens a second. Q5_0 is larger, worse and slower than Q4_K.
FILES = {
    "F16": (256.0, 20.0, 0.60, 0.0, 0.0, 30.0),
    "Q8_0": (136.0, 20.1, 0.60, 0.01, 0.001, 50.0),
    "Q5_0": (100.0, 22.0, 0.65, 0.18, 0.004, 70.0),
    "Q4_K": (98.0, 21.0, 0.62, 0.11, 0.003, 80.0),
    "Q4_0": (72.0, 30.0, 0.90, 0.70, 0.010, 110.0),
}


def divergence_json(name: str, text: str = "prose.txt", factor: float = 1.0) -> dict[str, Any]:
    """A record as from `lltool perplexity --reference`; on other texts all figures are multiplied by a factor."""
    _, value, error, divergence, divergence_error, _ = FILES[name]
    return {
        "tool": "lltool 0.1.0",
        "time": "2026-01-02T03:04:05+00:00",
        "method": "llama",
        "model": f"/models/tiny-{name}.gguf",
        "model_sha256": name * 8,
        "reference": "/models/tiny-F16.gguf",
        "reference_sha256": "F16" * 8,
        "reference_kind": "model",
        "text": f"/texts/{text}",
        "text_sha256": "ab" * 32,
        "cpu": "A fast one",
        "threads": 2,
        "scored_tokens": 2550,
        "perplexity": value * factor,
        "standard_error": error * factor,
        "base_perplexity": 20.0 * factor,
        "base_standard_error": 0.6 * factor,
        "divergence": {"mean": divergence * factor, "error": divergence_error * factor, "same_top": 1 - divergence / 2},
    }


def bench_json(name: str, test: tuple[int, int], threads: int, speed: float) -> dict[str, Any]:
    return {
        "build_commit": "c0ffee",
        "cpu_info": "A fast one",
        "model_filename": f"/models/tiny-{name}.gguf",
        "model_type": f"llama 134M {name}",
        "model_size": round(FILES[name][0] * MIB),
        "model_n_params": 128 * MIB,
        "n_threads": threads,
        "n_prompt": test[0],
        "n_gen": test[1],
        "test_time": "2026-01-02T03:04:05Z",
        "avg_ts": 1.5 * speed,
        "stddev_ts": 1.0,
        "engine": "lltool",
        "median_ts": speed,
        "low_ts": 0.9 * speed,
        "high_ts": 1.2 * speed,
        "model_sha256": name * 8,
        "notes": ["busy machine: 7% gone"] if name == "Q4_0" else [],
    }


def bench_rows() -> list[dict[str, Any]]:
    """Prompts run ten times as fast as generation, and two threads twice as fast as one."""
    return [
        bench_json(name, test, threads, FILES[name][5] * threads * (10 if test[0] else 1))
        for name in FILES
        for test in ((512, 0), (0, 64))
        for threads in (1, 2)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Results of FILES on one text; the reference's perplexity comes with those of the others."""
    for name in list(FILES)[1:]:
        (tmp_path / f"kl-{name}.json").write_text(json.dumps(divergence_json(name)))
    (tmp_path / "bench.json").write_text(json.dumps(bench_rows()))
    return tmp_path


@pytest.fixture
def runs(folder: Path) -> Runs:
    return read_runs(folder)


def test_the_table_has_the_numbers_of_the_results(runs: Runs) -> None:
    table = main_table(runs.entries)
    assert table.columns == (
        *("file", "MiB", "bits a weight", "perplexity", "KL divergence, nats a token", "same best token"),
        *("pp512 t/s, 1 thread", "pp512 t/s, 2 threads", "tg64 ms a token, 1 thread", "tg64 ms a token, 2 threads"),
    )
    assert table.rows == (
        ("F16 *", "256.0", "16.00", "20.00 ± 0.60", "0", "100.0 %", "300.0", "600.0", "33.33", "16.67"),
        ("Q8_0 *", "136.0", "8.50", "20.10 ± 0.60", "0.0100 ± 0.0010", "99.5 %", "500.0", "1000.0", "20.00", "10.00"),
        ("Q5_0", "100.0", "6.25", "22.00 ± 0.65", "0.1800 ± 0.0040", "91.0 %", "700.0", "1400.0", "14.29", "7.14"),
        ("Q4_K *", "98.0", "6.12", "21.00 ± 0.62", "0.1100 ± 0.0030", "94.5 %", "800.0", "1600.0", "12.50", "6.25"),
        ("Q4_0 *", "72.0", "4.50", "30.00 ± 0.90", "0.700 ± 0.010", "65.0 %", "1100.0", "2200.0", "9.09", "4.55"),
    )
    speeds = speed_table(runs.entries)
    assert speeds is not None
    assert speeds.rows[1] == (
        "Q8_0",
        *("500.0 (450.0 – 600.0)", "1000.0 (900.0 – 1200.0)", "50.0 (45.0 – 60.0)", "100.0 (90.0 – 120.0)"),
    )


def test_the_pareto_front(runs: Runs) -> None:
    assert front_of(runs.entries) == ["F16", "Q8_0", "Q4_K", "Q4_0"]
    assert front([(1, 5), (2, 4), (2, 5), (3, 4), (1, 5)]) == [0, 1, 4]  # equal rows do not beat each other
    fast = FILES["Q5_0"][5] + 20
    records: list[tuple[str, Any]] = [("", divergence_json(name)) for name in FILES]
    records += [("", bench_json(name, (0, 64), 1, fast if name == "Q5_0" else FILES[name][5])) for name in FILES]
    assert "Q5_0" in front_of(gather(records).entries)  # larger and worse, but faster


def test_losses_are_divergences_where_there_are_some(runs: Runs) -> None:
    loss = losses(runs.entries)
    assert loss is not None
    assert loss.values["Q4_0"] == (0.7, 0.01)
    plain = {name: value for name, value in divergence_json("Q8_0").items() if name != "divergence"}
    loss = losses(gather([("a", plain), ("b", {**plain, "model": "other.gguf", "model_sha256": "x"})]).entries)
    assert loss is not None
    assert loss.label == "perplexity on prose.txt"
    assert set(loss.values.values()) == {(20.1, 0.6)}


def test_several_texts_have_tables_and_a_mean(folder: Path) -> None:
    for name in list(FILES)[1:]:
        (folder / f"zz-{name}.json").write_text(json.dumps(divergence_json(name, "code.py", 0.5)))
    entries = read_runs(folder).entries
    perplexities, divergences = text_tables(entries)
    assert perplexities.columns == ("file", "prose.txt", "code.py")
    assert perplexities.rows[4] == ("Q4_0", "30.00 ± 0.90", "15.00 ± 0.45")
    assert divergences.rows[4] == ("Q4_0", "0.700 ± 0.010", "0.3500 ± 0.0050")
    table = main_table(entries)
    assert table.columns[3:5] == ("perplexity, prose.txt", "KL divergence, nats a token, mean of 2 texts")
    assert table.rows[4][4] == "0.5250 ± 0.0056"
    loss = losses(entries)
    assert loss is not None
    assert loss.values["Q4_0"] == pytest.approx((0.525, 0.0125**0.5 / 20))


def test_the_speed_to_choose_by_is_generation_with_most_threads(runs: Runs) -> None:
    speed = decode_speeds(runs.entries)["Q8_0"]
    assert (speed.middle, speed.low, speed.high) == (100, 90, 120)


def test_other_files_are_named_in_notes(folder: Path) -> None:
    (folder / "broken.json").write_text('{"perplexity": 1')
    (folder / "other.json").write_text('[{"a": 1}, 3]')
    (folder / "odd.json").write_text(json.dumps({**divergence_json("Q8_0"), "divergence": {"mean": "?"}}))
    (folder / "readme.txt").write_text("not looked at")
    (folder / "dry.json").write_text('{"path": null, "file_type": "Q4_0", "bits_per_weight": 4.5, "tensors": []}')
    (folder / "more.jsonl").write_text("\n".join(json.dumps(row) for row in bench_rows()))
    found = read_runs(folder)
    notes = "\n".join(found.notes)
    assert "broken.json: not JSON" in notes
    assert "other.json: not a result of lltool perplexity, bench or quantize; left out" in notes
    assert "odd.json: a field is missing or invalid" in notes
    assert "dry.json: a dry run" in notes
    assert "bench.json: busy machine: 7% gone (and 3 more measurements like it)" in notes
    assert "readme" not in notes
    assert len(found.notes) == 6  # more.jsonl's is the sixth
    assert len(found.entries) == len(FILES)
    assert {run.kind for run in found.runs} == {"divergence", "bench"}


def test_size_and_bits_come_from_quantize(tmp_path: Path) -> None:
    done = {"path": "/m/a-Q4_0.gguf", "file_type": "Q4_0", "bits_per_weight": 4.5, "bytes": 9 * MIB, "tensors": []}
    (tmp_path / "q.json").write_text(json.dumps([done, {**done, "path": "/m/a-Q8_0.gguf", "bytes": 17 * MIB}]))
    assert [row[:2] for row in main_table(read_runs(tmp_path).entries).rows] == [("Q8_0", "17.0"), ("Q4_0", "9.0")]


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/a/m-Q4_0.gguf", "/a/m-Q8_0.gguf"], ["Q4_0", "Q8_0"]),
        (["m.gguf"], ["m"]),
        (["m.gguf", "m-Q4_0.gguf"], ["m", "m-Q4_0"]),
        (["/a/m.gguf", "/b/m.gguf"], ["/a/m.gguf", "/b/m.gguf"]),
        (["C:\\x\\m.Q4_K_M.gguf", "m.Q4_K_S.gguf"], ["Q4_K_M", "Q4_K_S"]),
    ],
)
def test_short_names(paths: list[str], names: list[str]) -> None:
    assert short_names(paths) == names


def test_digits() -> None:
    assert plus_minus(21.9597, 0.6589) == "21.96 ± 0.66"
    assert plus_minus(0.020512, 0.000431) == "0.02051 ± 0.00043"
    assert plus_minus(1234.5, 56.7) == "1234.5 ± 56.7"
    assert plus_minus(0.0, 0.0) == "0"


class Page(HTMLParser):
    """The tags and attributes of a page, and the words of its cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.cells: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action", "data")]

    def handle_data(self, data: str) -> None:
        self.cells.append(data)


def test_the_page_stands_alone_and_has_the_numbers(runs: Runs) -> None:
    page = Page(text := format_page(runs, "A title", "Take Q4_K.", "lltool report x"))
    assert page.tags.count("svg") == 2
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
    assert "@import" not in text
    assert "url(http" not in text
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    for words in ("A title", "Take Q4_K.", "lltool report x", "0.1800 ± 0.0040", "7.14", "A fast one", "F16" * 8):
        assert words in page.cells, words
    assert "var(--ink)" in text  # the plots take the page's colours
    assert '<p class="quiet">lltool ' + __version__ + "</p>" in text  # no date: the same results give the same page
    assert len(text) < 200_000


def test_hostile_names_stay_text() -> None:
    name = "<script>alert(1)</script>$x_{$"
    records = [("<b>.json", {**divergence_json("Q8_0"), "model": f"/m/{name}.gguf"}), ("", divergence_json("Q4_0"))]
    records += [("", {**bench_json("Q8_0", (0, 64), 1, 9), "model_filename": f"/m/{name}.gguf"})]
    records += [("", bench_json("Q4_0", (0, 64), 1, 9))]
    page = format_page(gather(records), name, name)
    assert "<script" not in page
    assert "<b>" not in page
    assert "&lt;script&gt;" in page


def test_written_files(runs: Runs, tmp_path: Path) -> None:
    written = write_report(runs, tmp_path / "out.html", "A title", "Take Q4_K.")
    assert [path.name for path in written] == ["out.html", "out.md", "out.csv", "out.png"]
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    markdown = (tmp_path / "out.md").read_text()
    assert markdown == format_markdown(runs, "A title", "Take Q4_K.")
    assert markdown.startswith("# A title\n\nTake Q4_K.\n\n| file ")
    rows = list(csv.DictReader(io.StringIO(format_csv(runs.entries))))
    assert [row["name"] for row in rows] == list(FILES)
    assert float(rows[1]["tg64 t2 ts"]) == 100
    assert float(rows[1]["prose.txt divergence"]) == 0.01
    with pytest.raises(InputError, match=r"report\.txt: a report is an HTML page"):
        write_report(runs, tmp_path / "report.txt", "A title")


def test_names_in_a_plot_do_not_collide(tmp_path: Path, figures: list[Any]) -> None:
    """Ten files as close together as quantizations of one size."""
    with picture(tmp_path / "x.png", 4.6, 6.2) as figure:
        axis = figure.add_subplot()
        axis.set_xlim(0, 200)
        axis.set_ylim(0, 1)
        names = [(f"Q{i}_K_M-imatrix", 100.0 + i % 3, 0.5 + i / 100, False) for i in range(10)]
        boxes = [text.get_window_extent() for text in place_names(axis, names, "black")]
        border = axis.get_window_extent()
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    assert all(border.x0 <= b.x0 and b.x1 <= border.x1 and border.y0 <= b.y0 and b.y1 <= border.y1 for b in boxes)


@pytest.mark.parametrize(
    "points",
    [
        [("one", 1.0, 0.0, 0.0)],
        [("one", 1.0, 0.5, 0.1)],
        [(f"Q{i}_K-a-name-that-is-long-{i}", 50.0 + 9 * i, 1 / (1 + i), 0.01) for i in range(6)],
        [(f"Q{i % 7 + 2}_{i}", 50.0 + 9 * i, 9 / (1 + i), 0.01) for i in range(30)],
    ],
    ids=["one exact", "one", "long names", "30 files"],
)
def test_plots_have_room(tmp_path: Path, figures: list[Any], points: list[Any]) -> None:
    plot = Plot("Size against loss", "size (MiB)", "loss", [PlottedFile(*point) for point in points])
    draw_png([plot, plot], tmp_path / "x.png")
    assert misplaced_texts(figures[0]) == []


def test_plots_show_every_file(runs: Runs) -> None:
    size, time = plots(runs.entries)
    assert size.points[0] == PlottedFile("Q8_0", 136.0, 0.01, 0.001)
    assert time.points[0] == PlottedFile("Q8_0", 10.0, 0.01, 0.001)
    assert [p.name for p in size.points] == [p.name for p in time.points] == list(FILES)[1:]
    assert (size.at_zero, time.at_zero) == ([("F16", 256.0)], [("F16", pytest.approx(1000 / 60))])
    assert (size.x_label, time.x_label) == ("size (MiB)", "time of a generated token (ms)")
    assert size.note == "bold: no smaller file loses less; bars: ± standard error"
    svg = draw_svg(size)
    for name in (*list(FILES)[1:], "F16 (0)", "size (MiB)", "KL divergence (nats a token)"):
        assert f">{name}</text>" in svg, name
    assert svg == draw_svg(size)
    assert draw_svg(Plot("one", "x", "y", [PlottedFile("a", 1.0, 0.0)])).count(">a</text>") == 1  # nothing to scale by


@pytest.mark.parametrize(("content", "message"), [(None, "not a folder"), ([], "no results"), ([{}], "no results")])
def test_folders_without_results(content: Any, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    if content is not None:
        folder.mkdir()
        (folder / "a.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        read_runs(folder)


def test_types_of_a_family_are_one_line_and_nothing_repeats_an_axis(
    runs: Runs, tmp_path: Path, figures: list[Any]
) -> None:
    draw_png(plots(runs.entries), tmp_path / "x.png")
    assert len(figures[0].axes) == 2  # no colour bar
    for axis in figures[0].axes:
        lines = {line.get_label(): len(line.get_xdata()) for line in axis.lines}
        assert (lines["legacy types"], lines["K types"]) == (3, 1)
        assert axis.get_yscale() == "log"
        assert axis.get_ylabel() == "KL divergence (nats a token)"
        legacy = next(line for line in axis.lines if line.get_label() == "legacy types")
        assert list(legacy.get_xdata()) == sorted(legacy.get_xdata())
    bold = {text.get_text() for text in figures[0].axes[0].texts if text.get_fontweight() == "bold"}
    assert bold == {"Q8_0", "Q4_K", "Q4_0"}  # Q5_0 is larger and worse than Q4_K


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("IQ4_XS", "I types"),
        ("q4_k_m-imatrix", "K types"),
        ("Q8_0", "legacy types"),
        ("Q5_1", "legacy types"),
        ("TQ2_0", "ternary types"),
        ("MXFP4", "MXFP4"),
        ("model", "model"),
    ],
)
def test_families(name: str, family: str) -> None:
    assert family_of(name) == family


def test_a_loss_that_is_no_number_is_in_the_table_and_named_below_the_plot(runs: Runs) -> None:
    odd = replace(runs.entries[2], name="odd")
    odd.qualities = {scope: Quality(nan, nan, nan, nan, 0.5) for scope in odd.qualities}
    entries = [*runs.entries, odd]
    size, _ = plots(entries)
    assert "odd" not in [point.name for point in size.points]
    assert size.note.endswith("; not drawn, as their loss is no number: odd")
    assert "odd" not in front_of(entries)
    assert main_table(entries).rows[-1][3:5] == ("nan", "nan")


def test_a_family_is_drawn_from_left_to_right(tmp_path: Path, figures: list[Any]) -> None:
    points = [PlottedFile("Q4_0", 3.0, 1.0), PlottedFile("Q8_0", 1.0, 0.5), PlottedFile("Q5_0", 2.0, 0.7)]
    draw_png([Plot("one", "x", "y", points)], tmp_path / "x.png")
    assert list(figures[0].axes[0].lines[0].get_xdata()) == [1, 2, 3]
