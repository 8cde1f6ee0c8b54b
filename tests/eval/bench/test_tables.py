"""Rows: llama-bench's columns, values and formats, followed by ours."""

import csv
import io
import json
import sqlite3
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from lltool.eval.bench.results import record
from lltool.eval.bench.results.record import make_row
from lltool.eval.bench.results.rows import COLUMNS, LLAMA_BENCH_COLUMNS, ResultRow
from lltool.eval.bench.results.tables import FORMATS, format_markdown, format_rows
from lltool.eval.bench.run.plan import GridPoint, TimedRun, resolve
from lltool.eval.bench.settings import Settings, Workload
from lltool.gguf.describe import Description

# llama-bench's CSV header, as it prints it.
HEADER = (
    "build_commit,build_number,cpu_info,gpu_info,backends,model_filename,model_type,model_size,model_n_params,n_batch,"
    "n_ubatch,n_threads,cpu_mask,cpu_strict,poll,type_k,type_v,n_gpu_layers,n_cpu_moe,split_mode,main_gpu,no_kv_offload,"
    "flash_attn,devices,tensor_split,tensor_buft_overrides,load_mode,lazy_mode,embeddings,no_op_offload,no_host,repack,"
    "fit_target,fit_min_ctx,n_prompt,n_gen,n_depth,test_time,avg_ns,stddev_ns,avg_ts,stddev_ts"
)
# Our columns, which files of earlier versions have in this order.
OWN = (
    "engine,n_parallel,median_ts,low_ts,high_ts,ratio,ratio_low,ratio_high,read_bytes_per_s,read_share,"
    "multiply_adds_per_s,multiply_share,ttft_ms,token_ms_p50,token_ms_p95,token_ms_p99,load_ms,first_token_ms,"
    "peak_rss_bytes,energy_j,samples_ns,samples_ts,samples_prompt_ns,notes,model_sha256,settings,machine"
)
# The columns that llama.cpp's scripts/compare-llama-bench.py needs in order to distinguish rows.
COMPARED = {
    "cpu_info", "gpu_info", "backends", "n_gpu_layers", "n_cpu_moe", "tensor_buft_overrides", "model_filename",
    "model_type", "n_batch", "n_ubatch", "embeddings", "cpu_mask", "cpu_strict", "poll", "n_threads", "type_k",
    "type_v", "load_mode", "no_kv_offload", "split_mode", "main_gpu", "tensor_split", "flash_attn", "n_prompt", "n_gen",
    "n_depth", "fit_target", "fit_min_ctx", "build_commit", "test_time", "avg_ts",
}  # fmt: skip
MODEL = Description(("m.gguf",), 3, 32, "llama", "m", "Q4_0", 1_234_000_000, 700 << 20, 698 << 20, ())
MS = 1_000_000


@pytest.fixture(autouse=True)
def same_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "tool_digest", lambda: "0123456789abcdef")
    monkeypatch.setattr(record, "cpu_name", lambda: "Cpu 'n' \"m\"")


def row(workload: Workload, *milliseconds: int, notes: tuple[str, ...] = (), **settings: object) -> ResultRow:
    """Half of each run's time is the prompt's, if there is one."""
    asked = replace(Settings(Path("m.gguf"), threads=2), **settings)
    half = 2 if workload.generation else 1
    runs = [TimedRun(ms * MS, ms * MS // half if workload.prompt else 0) for ms in milliseconds]
    point = GridPoint(asked, workload)
    known = {"model_sha256": "ab", "test_time": "2026-01-02T03:04:05Z", "notes": list(notes)}
    return make_row(point, resolve(asked), MODEL, runs, **known)


def test_a_row_has_the_columns_of_llama_bench_and_then_ours() -> None:
    found = row(Workload(512, 0), 512, 1024, 256)
    assert ",".join(LLAMA_BENCH_COLUMNS) == HEADER
    assert ",".join(COLUMNS) == f"{HEADER},{OWN}"
    assert list(found.columns()) == list(COLUMNS)
    assert found.columns().keys() >= COMPARED
    assert found.samples_ts == [1000, 500, 2000]
    assert (found.median_ts, found.ttft_ms, found.avg_ns) == (1000, 512, 597_333_333)
    assert found.avg_ts == pytest.approx(3500 / 3)
    assert found.stddev_ts == pytest.approx(763.763, rel=1e-5)  # of the sample, n - 1
    assert found.low_ts < 1000 < found.high_ts
    assert (row(Workload(0, 8), 4).stddev_ts, row(Workload(0, 8), 4).low_ts) == (0, None)
    assert row(Workload(4, 4, 0, 3), 1000).avg_ts == 24  # tokens of all sequences


def test_values_have_the_types_of_their_columns() -> None:
    kinds = {"TEXT": str, "INTEGER": int, "REAL": float, "BOOLEAN": bool, "JSON": (list, dict)}
    found = row(Workload(8, 2), 10, 20).columns()
    for name, kind in COLUMNS.items():
        assert isinstance(found[name], kinds[kind]) or (found[name] is None and name not in LLAMA_BENCH_COLUMNS), name
        assert isinstance(found[name], bool) == (kind == "BOOLEAN"), name


def test_markdown_looks_like_llama_bench() -> None:
    assert format_markdown([row(Workload(0, 128), 1000), row(Workload(8, 0, 64), 1000)]).splitlines() == [
        "| model                          |       size |     params | backend    | threads |            test |                  t/s |              median (95 %) |",  # noqa: E501
        "| ------------------------------ | ---------: | ---------: | ---------- | ------: | --------------: | -------------------: | -------------------------: |",  # noqa: E501
        "| llama 1.2B Q4_0                | 698.00 MiB |     1.23 B | CPU        |       2 |           tg128 |        128.00 ± 0.00 |                     128.00 |",  # noqa: E501
        "| llama 1.2B Q4_0                | 698.00 MiB |     1.23 B | CPU        |       2 |       pp8 @ d64 |          8.00 ± 0.00 |                       8.00 |",  # noqa: E501
        "",
        "build: 01234567 (lltool 0.1.0)",
    ]


@pytest.mark.parametrize(
    ("settings", "title"),
    [
        ({"batch": 1024}, "n_batch"),
        ({"ubatch": 64}, "n_ubatch"),
        ({"type_k": "f32", "type_v": "f32"}, "type_k | type_v"),
        ({"load_mode": "none"}, "lm"),
        ({"n_gpu_layers": 7}, "ngl"),
        ({"cpu_mask": "0x1"}, "cpu_mask"),
    ],
)
def test_markdown_shows_settings_that_are_not_the_default(settings: dict[str, object], title: str) -> None:
    cells = [" ".join(cell.split()) for cell in format_markdown([row(Workload(8, 0), 5, **settings)]).split("|")]
    assert f" {title} |" in format_markdown([row(Workload(8, 0), 5, **settings)]).replace("  ", " ").replace("  ", " ")
    assert title.split(" |")[0] in cells
    assert title.split(" |")[0] not in format_markdown([row(Workload(8, 0), 5)])


def test_rows_hold_the_settings_in_effect_and_those_asked_for() -> None:
    found = [row(Workload(8, 0), 5, n_gpu_layers=n, notes=("no GPU",) * (n > 0)) for n in (0, 99)]
    assert [r.ran["n_gpu_layers"] for r in found] == [0, 0]
    assert [r.settings["asked"] for r in found] == [{}, {"n_gpu_layers": 99}]
    text = format_markdown(found)
    assert "|            0 |" in text
    assert "| 0 (asked 99) |" in text
    assert "- row 2: no GPU" in text


def test_csv_reads_in_pandas() -> None:
    rows = [row(Workload(512, 0), 512, 256), row(Workload(0, 16), 100, 100)]
    text = format_rows(rows, "csv")
    assert text.splitlines()[0].startswith(HEADER + ",engine,")
    frame = pd.read_csv(io.StringIO(text))
    assert list(frame["avg_ts"]) == [1500, 160]
    assert list(frame["cpu_info"]) == ["Cpu 'n' \"m\""] * 2
    assert (list(frame["cpu_strict"]), list(frame["no_kv_offload"])) == ([0, 0], [1, 1])
    assert json.loads(frame["samples_ns"][0]) == [512 * MS, 256 * MS]
    assert frame["energy_j"].isna().all()
    raw = next(csv.reader([text.splitlines()[1]]))
    assert text.splitlines()[1].count('","') == len(raw) - 1  # every field is quoted


def test_json_and_jsonl_hold_the_rows() -> None:
    rows = [row(Workload(8, 0), 5, 6), row(Workload(0, 8), 5, 6)]
    columns = [found.columns() for found in rows]
    assert json.loads(format_rows(rows, "json")) == columns
    assert [json.loads(line) for line in format_rows(rows, "jsonl").splitlines()] == columns


def test_sql_loads_and_loads_again() -> None:
    rows = [row(Workload(512, 0), 512, 256), row(Workload(0, 16), 100), row(Workload(8, 8, 0, 4), 50)]
    with sqlite3.connect(":memory:") as database:
        for _ in range(2):
            database.executescript(format_rows(rows, "sql"))
        columns = [(name, kind) for _, name, kind, *_ in database.execute("PRAGMA table_info(llama_bench)")]
        assert columns == [(n, k.replace("BOOLEAN", "INTEGER")) for n, k in LLAMA_BENCH_COLUMNS.items()]
        query = "SELECT n_prompt, n_gen, avg_ts, cpu_strict, cpu_info FROM llama_bench"
        expected = [(512, 0, 1500.0, 0, "Cpu 'n' \"m\""), (0, 16, 160.0, 0, "Cpu 'n' \"m\"")]
        assert list(database.execute(query)) == expected * 2
        query = "SELECT n_parallel, median_ts, energy_j, samples_ns FROM lltool_bench WHERE n_parallel = 4"
        assert list(database.execute(query)) == [(4, 1280.0, None, f"[{50 * MS}]")] * 2


@pytest.mark.parametrize("form", FORMATS)
def test_no_rows_give_an_empty_table(form: str) -> None:
    text = format_rows([], form)
    if form == "json":
        assert json.loads(text) == []
    assert "None" not in text


def test_several_sequences_give_the_table_of_llama_batched_bench() -> None:
    found = [row(Workload(128, 32, 0, n), 1000 * n) for n in (1, 4)]
    assert format_markdown(found).splitlines()[:6] == [
        "llama 1.2B Q4_0, m.gguf",
        "",
        "|    PP |     TG |    B |   N_KV |   T_PP s | S_PP t/s |   T_TG s | S_TG t/s |      T s |    S t/s |",
        "|-------|--------|------|--------|----------|----------|----------|----------|----------|----------|",
        "|   128 |     32 |    1 |    160 |    0.500 |   256.00 |    0.500 |    64.00 |    1.000 |   160.00 |",
        "|   128 |     32 |    4 |    640 |    2.000 |   256.00 |    2.000 |    64.00 |    4.000 |   160.00 |",
    ]
