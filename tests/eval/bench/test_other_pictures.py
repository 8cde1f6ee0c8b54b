"""Pictures of histories, comparisons, ratios and profiles: what axes, series and texts say, and that none collide."""

from pathlib import Path
from typing import Any

import pytest

from lltool.eval.bench.machine.limits import Limits, format_share
from lltool.eval.bench.peers.ratio_tables import plot_ratios
from lltool.eval.bench.plots.plot_history import plot_history
from lltool.eval.bench.profile.measure import Operation, Profile
from lltool.eval.bench.profile.tables import format_profiles, plot_profiles
from lltool.eval.bench.results.compare import compare_rows, plot_comparison
from lltool.eval.bench.run.work import Work
from lltool.eval.bench.settings import Settings, Workload
from tests.eval.bench.made_rows import made_row
from tests.eval.drawn_texts import misplaced_texts


def at(day: int, prompt: int = 0, generation: int = 64, **columns: Any) -> Any:
    return made_row(prompt, generation, test_time=f"2026-03-{day:02}T10:00:00Z", **columns)


def labels_of(axis: Any) -> list[str]:
    labels: list[str] = axis.get_legend_handles_labels()[1]
    return labels


def model(type: str) -> dict[str, str]:
    return {"model_type": f"llama 135M {type}", "model_filename": f"/models/smol-{type}.gguf"}


def test_history_names_series_by_what_differs_and_days_as_dates(tmp_path: Path, figures: list[Any]) -> None:
    rows = [at(day, **model(type)) for day in (1, 2, 3) for type in ("Q4_0", "Q8_0")]
    rows += [at(day, 512, 0, n_threads=t) for day in (1, 2) for t in (1, 2)] + [at(2, 128, 0, n_threads=2)]
    plot_history(rows, tmp_path / "x.svg")
    prefill, decode = figures[0].axes
    assert (decode.get_title(), prefill.get_title()) == ("decode, tg64", "prefill")
    assert labels_of(decode) == ["Q4_0", "Q8_0"]
    assert labels_of(prefill) == ["pp128, 2 threads", "pp512, 1 thread", "pp512, 2 threads"]
    assert decode.get_ylabel() == "speed (tokens a second)"
    assert decode.get_xlabel() == "time (UTC)"
    assert [label.get_text() for label in decode.get_xticklabels()].count("03-02") == 1
    assert decode.xaxis.get_offset_text().get_text() == "2026"
    assert misplaced_texts(figures[0]) == []


def test_history_names_the_file_if_the_type_does_not_tell_it(tmp_path: Path, figures: list[Any]) -> None:
    plot_history([at(1, model_filename=f"/models/smol-{name}.gguf") for name in ("a", "b")], tmp_path / "x.png")
    assert labels_of(figures[0].axes[0]) == ["a", "b"]


@pytest.mark.parametrize("series", [1, 30])
def test_histories_have_room_for_all_series(tmp_path: Path, figures: list[Any], series: int) -> None:
    long = "of-a-checkpoint-with-a-name-that-nobody-shortened" * (series > 1)
    rows = [at(1, speeds=(99.0, 100.0), n_threads=2, **model(f"{long}Q{number}")) for number in range(series)]
    plot_history(rows, tmp_path / "x.png")
    (axis,) = figures[0].axes
    assert len(axis.lines) == series  # no intervals of two runs
    assert not axis.collections
    assert misplaced_texts(figures[0]) == []


def test_comparisons_show_no_interval_of_two_runs_and_arrows_beyond_the_axis(
    tmp_path: Path, figures: list[Any]
) -> None:
    few, wide, usual = (90.0, 110.0), (60.0, 100.0, 190.0), (99.0, 100.0, 101.0, 100.0, 100.0)
    found = compare_rows(
        [made_row(n_threads=t) for t in (1, 2, 3, 4)],
        [made_row(n_threads=t + 1, speeds=speeds) for t, speeds in enumerate((few, wide, usual, usual))],
    )
    plot_comparison(found, ("/a/" * 60 + "a.json", "b.json"), tmp_path / "x.png", 0.05)
    (axis,) = figures[0].axes
    (stems,) = axis.collections
    assert [segment[0][1] for segment in stems.get_segments()] == [1, 2, 3]
    ends = {line.get_marker(): list(line.get_ydata()) for line in axis.lines}
    assert ends["|"] == [2, 3, 2, 3]
    assert (ends["<"], ends[">"]) == ([1], [1])
    subtitle = figures[0].subfigs[0].get_suptitle()
    assert "95 % interval of the difference, none for fewer than 3 runs; an arrow: it reaches" in subtitle
    assert subtitle.endswith("dashed: the limit, -5 %")
    assert axis.get_xlabel() == "difference of B's speed from A's (%; to the right: B is faster)"
    (legend,) = figures[0].subfigs[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["no difference seen"]
    assert misplaced_texts(figures[0]) == []


def test_ratios_are_named_and_have_room(tmp_path: Path, figures: list[Any]) -> None:
    rows = []
    for prompt, generation in ((512, 0), (0, 64)):
        rows += [made_row(prompt, generation)]
        rows += [made_row(prompt, generation, engine=f"other{i} 1", ratio=r) for i, r in ((1, 0.5), (2, 3.0))]
    plot_ratios(rows, tmp_path / "x.png")
    (axis,) = figures[0].axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["pp512", "tg64"]
    assert labels_of(axis) == ["compared with other1", "compared with other2"]
    assert axis.get_xlabel() == "lltool's speed / the engine's (times as fast; above 1: lltool is faster)"
    assert misplaced_texts(figures[0]) == []


LIMITS = Limits(2, "avx512", read=1e9, read_large_pages=2e9, int8=8e9, int16=4e9, float32=2e9)
LONG = "norm attn_norm, linear attn_q attn_k attn_v, norm attn_q_norm, norm attn_k_norm, rope"


def made_profile(workload: Workload, seconds: float = 1.0, name: str = "qwen2 630M Q4_K_M") -> Profile:
    operations = (
        Operation(LONG, "Q5_0 Q8_0", 24, 0.5 * seconds, Work(read=0.25e9 * seconds)),
        Operation("linear ffn_down", "Q6_K", 24, 0.3 * seconds, Work(read=0.9e9 * seconds)),
        Operation("select", "", 1, 0.2 * seconds, Work()),
    )
    return Profile(Settings(Path("m.gguf"), threads=2), workload, name, LIMITS, seconds, operations)


def test_profiles_have_whole_titles_and_no_impossible_percentages(tmp_path: Path, figures: list[Any]) -> None:
    profiles = [made_profile(Workload(512, 0), 0.4), made_profile(Workload(0, 128), 6)]
    plot_profiles(profiles, tmp_path / "x.png")
    prefill, decode = figures[0].axes
    assert figures[0].get_suptitle() == "Time of each operation: qwen2 630M Q4_K_M, 2 threads"
    assert prefill.get_title() == "pp512: 781.2 µs a token, 1280 tokens a second"
    assert decode.get_title() == "tg128: 46.88 ms a token, 21.33 tokens a second"
    assert [axis.get_xlabel() for axis in (prefill, decode)] == ["time (µs a token)", "time (ms a token)"]
    texts = [text.get_text() for text in decode.texts]
    assert texts == ["50 %, 50 % of the limit", "30 %, not measurable", "20 %"]
    assert [patch.get_width() for patch in decode.patches[:3]] == pytest.approx([23.4375, 14.0625, 9.375])
    assert "not measurable: faster than the measured limit" in figures[0].subfigs[0].get_suptitle()
    assert [label.get_text().replace("\n", " ") for label in decode.get_yticklabels()] == [
        f"{LONG} Q5_0 Q8_0",
        "linear ffn_down Q6_K",
        "select",
    ]
    assert misplaced_texts(figures[0]) == []


def test_profiles_of_several_models_name_them_in_each_title(tmp_path: Path, figures: list[Any]) -> None:
    plot_profiles([made_profile(Workload(0, 8), name=f"model {name}") for name in "ab"], tmp_path / "x.png")
    assert [axis.get_title()[:20] for axis in figures[0].axes] == ["model a, 2 threads, ", "model b, 2 threads, "]
    assert misplaced_texts(figures[0]) == []


def test_tables_say_not_measurable_too() -> None:
    cells = [
        line.split("|")[-2].strip() for line in format_profiles([made_profile(Workload(0, 8))], "md").split("\n")[2:7]
    ]
    assert cells[2:] == ["50 % read", "not measurable", ""]
    assert [format_share(share) for share in (0.0, 0.974, 1.0)] == ["0 %", "97 %", "100 %"]
    assert {format_share(share) for share in (1.001, -0.1, float("nan"), float("inf"))} == {"not measurable"}
