"""Throughput: what is timed, in which order, and how it is written down."""

import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lltool.eval import peers, throughput, throughput_tables
from lltool.eval.peers import compare, format_pairings, peer_version
from lltool.eval.plots import plot_throughput
from lltool.eval.throughput import Measurement, Workload, measure, workloads
from lltool.gguf.describe import Description
from lltool.gguf.errors import InputError
from lltool.tools.bench import main

# llama-bench's CSV header, as it prints it.
LLAMA_BENCH_COLUMNS = (
    "build_commit,build_number,cpu_info,gpu_info,backends,model_filename,model_type,model_size,model_n_params,n_batch,"
    "n_ubatch,n_threads,cpu_mask,cpu_strict,poll,type_k,type_v,n_gpu_layers,n_cpu_moe,split_mode,main_gpu,no_kv_offload,"
    "flash_attn,devices,tensor_split,tensor_buft_overrides,load_mode,lazy_mode,embeddings,no_op_offload,no_host,repack,"
    "fit_target,fit_min_ctx,n_prompt,n_gen,n_depth,test_time,avg_ns,stddev_ns,avg_ts,stddev_ts"
)

DESCRIPTION = Description(("m.gguf",), 3, 32, "llama", "m", "Q4_0", 1_234_000_000, 700 << 20, 698 << 20, ())


def measurement(workload: Workload, *milliseconds: int) -> Measurement:
    times = tuple(ms * 1_000_000 for ms in milliseconds)
    return Measurement(Path("m.gguf"), DESCRIPTION, 2, 512, "f16", workload, "2026-01-02T03:04:05Z", times)


def test_speeds_are_tokens_a_second() -> None:
    m = measurement(Workload(512, 0), 512, 1024, 256)
    assert m.speeds == [1000, 500, 2000]
    assert m.median == 1000
    assert m.mean == pytest.approx(3500 / 3)
    assert m.deviation == pytest.approx(763.763, rel=1e-5)  # of the sample, n - 1
    assert measurement(Workload(0, 8), 4).deviation == 0


def test_markdown_looks_like_llama_bench() -> None:
    assert throughput_tables.format_markdown([measurement(Workload(0, 128), 1000, 1000)]).splitlines() == [
        "| model                          |       size |     params | backend    | threads |            test |                  t/s |",  # noqa: E501
        "| ------------------------------ | ---------: | ---------: | ---------- | ------: | --------------: | -------------------: |",  # noqa: E501
        "| llama 1.2B Q4_0                | 698.00 MiB |     1.23 B | CPU        |       2 |           tg128 |        128.00 ± 0.00 |",  # noqa: E501
    ]


def test_csv_and_json_have_the_columns_of_llama_bench() -> None:
    found = [measurement(Workload(512, 0), 512, 256), measurement(Workload(0, 16), 100, 100)]
    rows = list(csv.reader(io.StringIO(throughput_tables.format_csv(found))))
    assert ",".join(rows[0]) == LLAMA_BENCH_COLUMNS
    assert [dict(zip(rows[0], row, strict=True))["avg_ts"] for row in rows[1:]] == ["1500.0", "160.0"]
    objects = json.loads(throughput_tables.format_json(found))
    assert list(objects[0]) == [*rows[0], "samples_ns", "samples_ts", "median_ts"]
    assert objects[0]["avg_ns"] == 384_000_000
    assert objects[0]["samples_ts"] == [1000, 2000]
    assert (objects[1]["n_prompt"], objects[1]["n_gen"], objects[1]["n_gpu_layers"]) == (0, 16, 0)


def test_nothing_to_measure_is_an_error() -> None:
    with pytest.raises(InputError, match="nothing to measure"):
        workloads([0], [0])


def test_repetitions_go_round_all_workloads(real_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[tuple[int, str]] = []

    def record(model: throughput.Model, workload: Workload, tokens: object) -> int:
        order.append((model.threads, str(workload)))
        return 1000

    monkeypatch.setattr(throughput, "time_workload", record)
    path = real_model("smollm2-q4_1")
    found = measure([path], prompts=[4, 0], generations=[2], threads=[1, 2], repetitions=2, warm_up=False)
    assert order == [(1, "pp4"), (1, "tg2"), (2, "pp4"), (2, "tg2")] * 2
    assert [(m.threads, str(m.workload), m.nanoseconds) for m in found] == [(*o, (1000, 1000)) for o in order[:4]]
    assert (found[0].model.architecture, found[0].model.file_type, found[0].batch) == ("llama", "Q4_1", 512)


def test_command_measures_and_plots(
    real_model: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, plot = str(real_model("smollm2-q4_1")), tmp_path / "speed.png"
    assert main(["-m", model, "-p", "8", "-n", "2", "-r", "2", "-ngl", "1", "--json", "--plot", str(plot)]) == 0
    out, err = capsys.readouterr()
    rows = json.loads(out)
    assert [(row["n_prompt"], row["n_gen"], len(row["samples_ns"])) for row in rows] == [(8, 0, 2), (0, 2, 2)]
    assert all(ns > 0 for row in rows for ns in row["samples_ns"])
    assert err.count("no GPU executor") == 1
    assert plot.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="no GPU executor"):
        main(["-m", model, "-ngl", "1", "--strict"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", ""], "'' lacks the name of a file"),
        (["-m", "a.gguf,,b.gguf"], "lacks the name of a file"),
        (["-m", "a.gguf", "--plot", "/nonexistent/x.png"], "'/nonexistent/x.png' is not a file that can be written"),
        (["-m", "a.gguf", "--plot", ""], "'' is not a file that can be written"),
        (["-m", "a.gguf", "--plot", "/"], "'/' is not a file that can be written"),
        (["-m", "a.gguf", "--peer", "python", "--json"], "leave out --json, -o and --plot"),
        (["-m", "a.gguf", "--peer", "python", "-o", "csv"], "leave out --json, -o and --plot"),
    ],
)
def test_what_cannot_be_done_is_said_before_measuring(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        main(arguments)


def test_plot_is_whole_or_absent(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing/x\.png: cannot be written: No such file"):
        plot_throughput([measurement(Workload(8, 0), 1)], tmp_path / "missing" / "x.png")
    target = plot_throughput([measurement(Workload(8, 0), 1, 2), measurement(Workload(0, 8), 3)], tmp_path / "x.png")
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


FAKE_PEER = '''
"""Stands in for llama-cpp-python: checks how it is called."""
import ctypes, types
__version__ = "9.9"
llama_token = ctypes.c_int32
llama_log_callback = lambda function: function
llama_log_set = llama_backend_init = lambda *arguments: None
llama_model_default_params = llama_context_default_params = types.SimpleNamespace
llama_model_load_from_file = lambda path, options: path.endswith(b".gguf")
def llama_init_from_model(model, options):
    assert options.n_threads == options.n_threads_batch == 2 and options.n_ctx == 8
    return types.SimpleNamespace(seen=0)
llama_get_memory = lambda state: state
def llama_memory_clear(state, data): state.seen = 0
llama_batch_get_one = lambda tokens, count: count
def llama_decode(state, count):
    state.seen += count
    return 0 if state.seen <= 8 else 1
llama_get_logits_ith = lambda state, row: None
'''


@pytest.fixture
def peer_python(tmp_path: Path) -> str:
    (tmp_path / "llama_cpp.py").write_text(FAKE_PEER)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return str(python)


def test_peer_runs_in_turns(real_model: Callable[[str], Path], peer_python: str) -> None:
    assert peer_version(peer_python) == "9.9"
    runs = [Workload(8, 0), Workload(0, 4)]
    pairings = compare(real_model("smollm2-q4_1"), peer_python, workloads=runs, threads=2, repetitions=2)
    assert [(p.peer, p.workload, len(p.ours), len(p.theirs)) for p in pairings] == [("9.9", w, 2, 2) for w in runs]
    assert pairings[0].ratio == pytest.approx(sum(pairings[0].ratios) / 2)
    assert len(format_pairings(pairings).splitlines()) == 4


def test_peer_runs_as_asked(
    real_model: Callable[[str], Path], peer_python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[str] = []

    def record(model: throughput.Model, workload: Workload, tokens: object) -> int:
        timed.append(model.precision)
        return 1000

    monkeypatch.setattr(peers, "time_workload", record)
    arguments = ["-m", str(real_model("smollm2-q4_1")), "-p", "8", "-n", "0", "-t", "2", "-r", "2"]
    assert main([*arguments, "--peer", peer_python]) == 0
    assert main([*arguments, "--peer", peer_python, "--precision", "f32", "--no-warmup"]) == 0
    assert timed == ["int8"] * 3 + ["f32"] * 2


def test_missing_peer_is_said(real_model: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    model = str(real_model("smollm2-q4_1"))
    arguments = ["-m", model, "-p", "4", "-n", "0", "-r", "1", "--peer", sys.executable]
    assert main(arguments) == 0
    assert "no llama-cpp-python" in capsys.readouterr().err
    with pytest.raises(InputError, match="no llama-cpp-python"):
        main([*arguments, "--strict"])
    with pytest.raises(InputError, match="wanted a Python"):
        main(["-m", model, "--peer", "/nonexistent/python"])
