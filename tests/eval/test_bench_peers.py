"""Peers: how each is named and called, the order of the runs, and what comes out in rows and in the table."""

import csv
import io
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lltool import __version__
from lltool.eval.bench.history import recall
from lltool.eval.bench.limits import Limits
from lltool.eval.bench.peers import pairing
from lltool.eval.bench.peers.llama_bench import LlamaBench
from lltool.eval.bench.peers.pairing import Interrupted, measure_beside
from lltool.eval.bench.peers.peer import runs_in_one
from lltool.eval.bench.peers.python_peers import LlamaCppPython, Transformers, export_once
from lltool.eval.bench.peers.ratio_tables import format_ratios
from lltool.eval.bench.peers.specification import parse_peer
from lltool.eval.bench.peers.worker import Worker
from lltool.eval.bench.plan import Run, Settings, Workload, grid, resolve
from lltool.eval.bench.runner import Runner
from lltool.eval.bench.schedule import Effort
from lltool.gguf.errors import InputError
from lltool.tools.bench import main

LIMITS = Limits(2, "scalar", read=1e15, read_large_pages=2e15, int8=8e15, int16=4e15, float32=2e15)

FAKE_LLAMA_CPP = '''
"""Stands in for llama-cpp-python: checks how it is called."""
import ctypes, types
__version__ = "9.9"
llama_token = ctypes.c_int32
llama_log_callback = lambda function: function
llama_log_set = llama_backend_init = lambda *arguments: None
llama_context_default_params = types.SimpleNamespace
llama_model_default_params = lambda: types.SimpleNamespace(use_extra_bufts=None)
llama_model_load_from_file = lambda path, options: path.endswith(b".gguf") and isinstance(options.use_extra_bufts, bool)
def llama_init_from_model(model, options):
    assert options.n_threads == options.n_threads_batch == 2 and options.n_ctx == 12
    assert (options.n_batch, options.n_ubatch) == (2048, 512)
    return types.SimpleNamespace(sizes=[])
llama_get_memory = lambda state: state
def llama_memory_clear(state, data): state.sizes = []
llama_batch_get_one = lambda tokens, count: (list(tokens), count)
def llama_decode(state, batch):
    tokens, count = batch
    assert len(tokens) == count
    state.sizes.append(count)
    return 0 if state.sizes in ([8], [4], [4, 6], [4, 6, 1], [4, 6, 1, 1]) else 1
llama_get_logits_ith = lambda state, row: None
'''

FAKE_BENCH = '''#!{python}
"""Stands in for llama-bench: keeps how it is called."""
import json, sys
from pathlib import Path
if "--help" in sys.argv:
    print("""{help}""")
    sys.exit(0)
with Path("{log}").open("a") as log:
    log.write(" ".join(sys.argv[1:]) + "\\n")
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
ns = 2000 if given.get("--repack", given.get("-rtr")) == "1" else 4000
row = {{"build_commit": "abcd123", "build_number": 7, "model_type": "llama 256M", "flash_attn": -1}}
row["samples_ns"] = [ns] * int(given["-r"])
print(json.dumps([row]))
'''


@pytest.fixture
def peer_python(tmp_path: Path) -> str:
    """A Python with the llama-cpp-python above."""
    (tmp_path / "llama_cpp.py").write_text(FAKE_LLAMA_CPP)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return str(python)


def fake_bench(folder: Path, help: str = "-p, --n-prompt\n  -d, --n-depth\n  --repack <0|1>") -> LlamaBench:
    path = folder / "llama-bench"
    path.write_text(FAKE_BENCH.format(python=sys.executable, help=help, log=folder / "log"))
    path.chmod(0o755)
    return LlamaBench(path)


SETTINGS = resolve(Settings(Path("m.gguf"), threads=2))


@dataclass
class FakePeer:
    """Takes twice as long in one of its modes, three times in the other; `calls` is shared with our own engine."""

    calls: list[str]
    closed: list[str] = field(default_factory=list)

    def find_missing(self) -> str | None:
        return None

    def load(self, settings: Settings, runs: Sequence[Workload]) -> list[Any]:
        return [FakeEngine(self, mode, factor) for mode, factor in (("slow", 3), ("fast", 2))]


@dataclass
class FakeEngine:
    peer: FakePeer
    mode: str
    factor: int

    @property
    def name(self) -> str:
        return f"other 1.0 {self.mode}"

    @property
    def columns(self) -> dict[str, Any]:
        return {"build_commit": "other-1.0", "flash_attn": -1}

    def time(self, workload: Workload, tokens: Sequence[int]) -> int:
        assert len(tokens) == workload.context
        self.peer.calls.append(f"{self.mode} {workload}")
        return self.factor * 1000

    def close(self) -> None:
        self.peer.closed.append(self.mode)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What ran, in order; our own engine takes 1000 ns."""
    found: list[str] = []

    def run(self: Runner, workload: Workload) -> Run:
        found.append(f"ours {workload}")
        return Run(1000, 1000 if workload.prompt else 0, (1000,) * workload.generation)

    monkeypatch.setattr(pairing.Runner, "run", run)
    monkeypatch.setattr(pairing, "limits_of", lambda settings: LIMITS)
    return found


def test_engines_run_in_turns_there_and_back(real_model: Callable[[str], Path], calls: list[str]) -> None:
    peer = FakePeer(calls)
    points = grid([real_model("smollm2-q4_1")], [Workload(512, 0), Workload(0, 64)], threads=[2])
    seen: list[tuple[int, int, str]] = []
    rows = measure_beside(points, [peer], Effort(2), progress=lambda *told: seen.append(told))
    assert calls[:5] == [
        "slow pp128",
        "fast pp128",
        "fast pp128",
        "slow pp128",
        "ours pp512",
    ]  # a trial, and to warm up
    assert calls[5:10] == ["slow tg16", "fast tg16", "fast tg16", "slow tg16", "ours tg64"]
    assert calls[10:] == [
        *("ours pp512", "fast pp512", "ours tg64", "fast tg64"),
        *("fast pp512", "ours pp512"),
        *("fast tg64", "ours tg64"),
    ]
    assert seen[0] == (0, 6, f"{points[0].settings.model.name}, pp512: modes")
    assert seen[2] == (2, 6, f"{points[0].settings.model.name}, pp512")
    assert seen[-1][:2] == (6, 6)
    assert peer.closed == ["fast", "slow"]
    assert [row["engine"].split()[-1] for row in rows] == [__version__, "fast"] * 2
    assert [row["ratio"] for row in rows] == [None, 2] * 2
    ours, fast = rows[:2]
    assert (fast["samples_ns"], fast["avg_ns"], fast["median_ts"]) == ([2000, 2000], 2000, pytest.approx(512e9 / 2000))
    assert (fast["build_commit"], fast["flash_attn"], fast["n_threads"]) == ("other-1.0", -1, 2)
    assert (ours["ttft_ms"], fast["ttft_ms"]) == (pytest.approx(0.001), None)
    assert fast["settings"]["modes_ns"] == {"other 1.0 slow": 3000, "other 1.0 fast": 2000}
    assert len({row["settings"]["session"] for row in rows}) == 1
    assert ours["read_bytes_per_s"] == pytest.approx(2 * fast["read_bytes_per_s"])
    assert ours["read_share"] == pytest.approx(ours["read_bytes_per_s"] / LIMITS.read)
    assert ours["multiply_share"] > 2 * fast["multiply_share"] * 0.999
    lines = format_ratios(rows).splitlines()
    assert [line.split("|")[3].strip() for line in lines[2:4]] == [ours["engine"], "other 1.0 fast"]
    assert [cell.strip() for cell in lines[3].split("|")[-3:-1]] == ["2.00 (2.00 – 2.00)", "2.00 – 2.00"]
    named = "llama 135M Q4_1, pp512: other 1.0 fast is the fastest of its modes in a trial"
    assert f"- {named} (1.50 × as long: other 1.0 slow)" in lines


def test_a_few_tokens_run_several_times_and_the_median_counts(
    real_model: Callable[[str], Path], calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [runs_in_one(Workload(n, 0)) for n in (1, 2, 8, 30, 64, 512)] == [15, 15, 8, 2, 1, 1]
    times = iter([5000, 9000, 1000, 7000])
    monkeypatch.setattr(pairing.Runner, "run", lambda *_: Run(next(times), 0))
    monkeypatch.setattr(pairing, "runs_in_one", lambda workload: 3)
    points = grid([real_model("smollm2-q4_1")], [Workload(4, 0)], threads=[2])
    rows = measure_beside(points, [FakePeer(calls)], Effort(1), warm=True)
    assert rows[0]["samples_ns"] == [7000]


def test_runs_go_on_until_the_ratio_is_known(
    real_model: Callable[[str], Path], calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([1000, 1500, 1500, 1000] + [2000, 2500, 1500, 1000, 3000] + [2000] * 40)
    monkeypatch.setattr(FakeEngine, "time", lambda *_: next(times))
    points = grid([real_model("smollm2-q4_1")], [Workload(8, 0)], threads=[2])
    rows = measure_beside(points, [FakePeer(calls)], Effort(2, until=0.02, most=20))
    assert 4 < len(rows[0]["samples_ns"]) < 20
    rows = measure_beside(points, [FakePeer(calls)], Effort(2), warm=False)
    assert len(rows[0]["samples_ns"]) == 2


def test_ctrl_c_keeps_the_rounds_that_were_finished(
    real_model: Callable[[str], Path], calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    time = FakeEngine.time

    def stop(self: FakeEngine, workload: Workload, tokens: Sequence[int]) -> int:
        if len(calls) > 9:  # four of the trial, one to warm up, two rounds
            raise KeyboardInterrupt
        return time(self, workload, tokens)

    monkeypatch.setattr(FakeEngine, "time", stop)
    peer = FakePeer(calls)
    points = grid([real_model("smollm2-q4_1")], [Workload(80, 0)], threads=[2])
    with pytest.raises(Interrupted) as stopped:
        measure_beside(points, [peer], Effort(5))
    assert [len(row["samples_ns"]) for row in stopped.value.rows] == [2, 2]
    assert peer.closed == ["fast", "slow"]


def test_what_peers_cannot_do_is_refused(tmp_path: Path) -> None:
    several = [Workload(8, 0, 0, 2)]
    for peer in (LlamaCppPython(), Transformers()):
        with pytest.raises(InputError, match="runs one sequence at a time; leave out -npl, or the peer"):
            peer.load(SETTINGS, several)
    with pytest.raises(InputError, match="llama-batched-bench: wanted for -npl, beside llama-bench"):
        LlamaBench(fake_bench(tmp_path).path).load(SETTINGS, several)
    with pytest.raises(InputError, match="--peer cannot be bound to processors with -C"):
        measure_beside(grid([tmp_path / "m.gguf"], [Workload(8, 0)], cpu_mask=["0x1"]), [FakePeer([])])


def test_llama_cpp_python_is_asked_for_the_same_shape(peer_python: str) -> None:
    peer = LlamaCppPython(peer_python)
    assert peer.find_missing() is None
    runs = [Workload(8, 0), Workload(6, 2, 4)]
    engine, plain = peer.load(SETTINGS, runs)
    assert (engine.name, engine.columns["build_commit"]) == ("llama-cpp-python 9.9 repack", "llama-cpp-python-9.9")
    assert plain.name == "llama-cpp-python 9.9 no repack"
    plain.close()
    assert all(engine.time(run, list(range(run.context))) > 0 for run in runs)
    with pytest.raises(InputError, match="peer llama-cpp-python: RuntimeError: llama_decode gave 1"):
        engine.time(Workload(7, 0), list(range(7)))
    engine.close()  # as on the way out of an error
    with pytest.raises(InputError, match="runs with a cache of f16"):
        peer.load(resolve(Settings(Path("m.gguf"), type_k="f32", type_v="f32")), runs)


def test_workers_that_fail_are_one_line(tmp_path: Path) -> None:
    for text, message in (
        ("print('hello')", "peer x: answered 'hello'"),
        ("import sys; sys.stderr.write('x' * 200_000); sys.exit('no room')", "no room"),
        ("raise SystemExit(3)", "peer x: ended with exit code 3"),
        ("import missing_module", "peer x: ModuleNotFoundError: No module named 'missing_module'"),
        ('print(\'{"error": "no memory"}\')', "peer x: no memory"),
    ):
        (tmp_path / "worker.py").write_text(text)
        with pytest.raises(InputError, match=message):
            Worker(sys.executable, tmp_path / "worker.py", [], "x")


def test_llama_bench_runs_with_and_without_repacking(tmp_path: Path) -> None:
    peer = fake_bench(tmp_path)
    assert peer.find_missing() is None
    runs = [Workload(80, 0), Workload(0, 4), Workload(80, 4, 16)]
    packed, plain = peer.load(SETTINGS, runs)
    assert [(packed.time(run, ()), plain.time(run, ())) for run in runs] == [(2000, 4000)] * 3
    assert (packed.name, plain.name) == ("llama.cpp abcd123 repack", "llama.cpp abcd123 no repack")
    assert packed.columns == {"build_commit": "abcd123", "build_number": 7, "flash_attn": -1}
    first = f"-m {Path('m.gguf').absolute()} -t 2 -b 2048 -ub 512 -ngl 0"
    assert (tmp_path / "log").read_text().splitlines()[::2] == [
        f"{first} -p 80 -n 0 --repack 1 -r 1 -o json",
        f"{first} -p 0 -n 4 --repack 1 -r 15 -o json",
        f"{first} -p 0 -n 0 -pg 80,4 -d 16 --repack 1 -r 1 -o json",
    ]


FAKE_BATCHED = """#!/bin/sh
echo "$@" >> {log}
echo "|    PP |     TG |    B |   N_KV |   T_PP s | S_PP t/s |   T_TG s | S_TG t/s |      T s |    S t/s |"
echo "|-------|--------|------|--------|----------|----------|----------|----------|----------|----------|"
echo "|     1 |     16 |    8 |    136 |    0.024 |   333.33 |    0.250 |   512.00 |    0.274 |   496.35 |"
"""


def test_several_sequences_run_in_the_program_beside(tmp_path: Path) -> None:
    peer = fake_bench(tmp_path)
    peer.batched.write_text(FAKE_BATCHED.format(log=tmp_path / "batched"))
    peer.batched.chmod(0o755)
    runs = [Workload(0, 16, 0, 8), Workload(20, 16, 0, 8), Workload(0, 16, 300, 8)]
    packed, plain = peer.load(SETTINGS, runs)
    assert [plain.time(run, ()) for run in runs] == [250_000_000, 274_000_000, 250_000_000]
    assert packed.time(runs[0], ()) == 250_000_000
    assert plain.name == "llama.cpp abcd123 no repack"
    first = f"-m {Path('m.gguf').absolute()} -t 2 -b 2048 -ub 512 -ngl 0"
    assert (tmp_path / "batched").read_text().splitlines() == [
        f"{first} -npp 1 -ntg 16 -npl 8 -c 2048 --no-repack",
        f"{first} -npp 20 -ntg 16 -npl 8 -c 2048 --no-repack",
        f"{first} -npp 300 -ntg 16 -npl 8 -c 4096 --no-repack",
        f"{first} -npp 1 -ntg 16 -npl 8 -c 2048",
    ]
    peer.batched.write_text(FAKE_BATCHED.format(log=tmp_path / "batched").replace('"|', '>&2 "|'))
    assert plain.time(runs[0], ()) == 250_000_000  # as ik_llama.cpp's tells it
    with pytest.raises(InputError, match="cannot do pp20 @ d300 x 8"):
        plain.time(Workload(20, 0, 300, 8), ())
    peer.batched.write_text("#!/bin/sh\necho no room >&2; exit 1")
    with pytest.raises(
        InputError, match=r"batched-bench: gave no result for tg16 x 8 of m\.gguf, exit code 1: no room"
    ):
        plain.time(runs[0], ())


def test_llama_bench_of_other_builds(tmp_path: Path) -> None:
    """ik_llama.cpp's has -rtr, and -gp in place of -d; one that knows no repacking has one mode."""
    text = "-p, --n-prompt\n  -gp <pp,tg>\n  -rtr, --run-time-repack <0|1>"
    engines = fake_bench(tmp_path, text).load(SETTINGS, [Workload(80, 0), Workload(0, 64, 100)])
    assert [engine.time(Workload(80, 0), ()) for engine in engines] == [2000, 4000]
    assert [engine.name for engine in engines] == [f"ik_llama.cpp abcd123 {mode}" for mode in ("repack", "no repack")]
    assert engines[0].time(Workload(0, 64, 100), ()) == 2000
    assert " -p 0 -n 0 -gp 100,64 -rtr 1 " in (tmp_path / "log").read_text().splitlines()[-1]
    with pytest.raises(InputError, match="this llama-bench cannot do pp80 @ d100"):
        fake_bench(tmp_path, text).load(SETTINGS, [Workload(80, 0, 100)])
    (engine,) = fake_bench(tmp_path, "-p, --n-prompt").load(SETTINGS, [Workload(80, 0)])
    assert (engine.time(Workload(80, 0), ()), engine.name) == (4000, "llama.cpp abcd123")
    with pytest.raises(InputError, match="this llama-bench cannot do tg4 @ d4"):
        fake_bench(tmp_path, "-p, --n-prompt").load(SETTINGS, [Workload(0, 4, 4)])
    assert "its help has no -p" in (fake_bench(tmp_path, "hello").find_missing() or "")
    assert "cannot be run (No such file" in (LlamaBench(tmp_path / "missing").find_missing() or "")


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo cannot load >&2; exit 1", "gave no result for pp80 of m.gguf, exit code 1: cannot load"),
        ("echo '[]'", "gave no result for pp80 of m.gguf, exit code 0: \\[\\]"),
        ("echo '[{\"samples_ns\": [1, 2]}]'", "its JSON has samples_ns \\[1, 2\\], wanted 1 whole number"),
        ("exit 0", "exit code 0: it said nothing"),
    ],
)
def test_a_llama_bench_that_fails_is_one_line(tmp_path: Path, script: str, message: str) -> None:
    path = tmp_path / "llama-bench"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    (engine,) = LlamaBench(path).load(SETTINGS, [Workload(80, 0)])
    with pytest.raises(InputError, match=message):
        engine.time(Workload(80, 0), ())


def test_peers_are_named_on_the_command_line(tmp_path: Path, peer_python: str) -> None:
    assert parse_peer("llama-cpp-python") == LlamaCppPython()
    assert parse_peer(f"llama-cpp-python:{peer_python}") == parse_peer(peer_python) == LlamaCppPython(peer_python)
    assert parse_peer("llama-bench:/x/llama-bench") == LlamaBench(Path("/x/llama-bench"))
    (tmp_path / "config.json").write_text("{}")
    found = parse_peer(f"transformers:bfloat16:{tmp_path}:{peer_python}")
    assert found == Transformers(peer_python, ("bfloat16",), tmp_path)
    assert parse_peer("transformers") == Transformers(sys.executable, ("float32", "bfloat16"))
    assert LlamaCppPython(peer_python).find_missing() is None
    assert "`pip install torch transformers` there" in (Transformers("/bin/false").find_missing() or "")
    assert "`pip install llama-cpp-python` there" in (LlamaCppPython("/bin/false").find_missing() or "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vllm", "not a peer, and not a Python that can be run; wanted transformers"),
        ("/nonexistent/python", "not a Python that can be run"),
        ("llama-cpp-python:", "nothing behind the colon"),
        ("llama-cpp-python:a:b", "wanted transformers"),
        (
            "transformers:int8",
            "int8 is no type .float32, bfloat16, float16., no folder with a config.json and no Python",
        ),
    ],
)
def test_what_is_no_peer(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_peer(text)


def test_llama_bench_without_a_path_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="there is none in PATH; name it: llama-bench:PATH"):
        parse_peer("llama-bench")
    assert fake_bench(tmp_path) == parse_peer("llama-bench")


@pytest.mark.usefixtures("calls")
def test_command_puts_peers_in_every_form(
    real_model: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peer = f"llama-bench:{fake_bench(tmp_path).path}"
    plain = [*("-m", str(real_model("smollm2-q4_1"))), *("-p", "8", "-n", "0", "-r", "2", "-t", "2")]
    arguments = [*plain, "--peer", peer, "--db", str(tmp_path / "h.sqlite")]
    assert main(arguments) == 0
    assert "(2.00 × as long: llama.cpp abcd123 no repack)" in capsys.readouterr().out
    assert main([*arguments, "-o", "csv", "--plot", str(tmp_path / "x.png")]) == 0
    capsys.readouterr()
    assert main([*arguments, "-o", "csv", "--save", str(tmp_path / "found")]) == 0
    found = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["engine"].split()[0], row["ratio"]) for row in found] == [
        ("lltool", ""),
        ("llama.cpp", "2.0"),
    ]
    assert (tmp_path / "x.png").exists()
    assert [row["ratio"] for row in recall(tmp_path / "h.sqlite")] == [None, 2] * 3
    assert list(csv.DictReader((tmp_path / "found.csv").open())) == found
    kept = json.loads((tmp_path / "found.json").read_text())
    assert [row["ratio"] for row in kept] == [None, 2]
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("calls")
def test_a_peer_that_is_not_installed_is_said(
    real_model: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*("-m", str(real_model("smollm2-q4_1"))), *("-p", "8", "-n", "0", "-r", "2", "--no-memory")]
    arguments += [
        "--no-history",
        "--peer",
        f"llama-bench:{tmp_path}/llama-bench",
        "--peer",
        "llama-cpp-python:/bin/false",
    ]
    assert main([*arguments, "--json"]) == 0
    out, err = capsys.readouterr()
    assert len(json.loads(out)) == 1
    assert "cannot be run (No such file or directory); build llama-bench of llama.cpp, and name its path" in err
    assert "/bin/false has no llama-cpp-python; `pip install llama-cpp-python` there" in err
    with pytest.raises(InputError, match="cannot be run"):
        main([*arguments, "--strict"])
    with pytest.raises(InputError, match="--peer vllm: not a peer"):
        main([*arguments, "--peer", "vllm"])


@pytest.mark.slow
def test_transformers_runs_a_checkpoint_made_of_the_file(real_model: Callable[[str], Path], tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    model = real_model("smollm2-q4_1")
    settings = resolve(Settings(model, threads=1))
    (engine,) = Transformers(dtypes=("float32",), cache=tmp_path).load(settings, [Workload(4, 2, 3)])
    times = [engine.time(run, list(range(9))) for run in (Workload(4, 0), Workload(0, 2), Workload(4, 2, 3))]
    engine.close()
    assert min(times) > 0
    assert engine.name.startswith("transformers ")
    assert engine.name.endswith(" float32")
    made = export_once(model, tmp_path)
    assert json.loads((made / "config.json").read_text())["model_type"] == "llama"


@pytest.mark.slow
def test_an_installed_llama_bench_runs(real_model: Callable[[str], Path]) -> None:
    path = shutil.which("llama-bench")
    if path is None:
        pytest.skip("needs llama-bench in PATH")
    points = grid([real_model("smollm2-q4_1")], [Workload(8, 0), Workload(4, 2, 4)], threads=[1])
    rows = measure_beside(points, [LlamaBench(Path(path))], Effort(2), warm=False)
    assert len(rows[1]["settings"]["modes_ns"]) == 2
    assert all(0.01 < row["ratio"] < 100 for row in rows if row["ratio"] is not None)
    assert [(row["n_prompt"], row["n_gen"], row["n_depth"]) for row in rows] == [(8, 0, 0)] * 2 + [(4, 2, 4)] * 2
    assert rows[1]["build_commit"] != rows[0]["build_commit"]


@pytest.mark.slow
def test_an_installed_llama_cpp_python_runs(real_model: Callable[[str], Path]) -> None:
    peer = LlamaCppPython()
    if peer.find_missing():
        pytest.skip("needs llama-cpp-python")
    points = grid([real_model("smollm2-q4_1")], [Workload(8, 0), Workload(4, 2, 4)], threads=[1])
    rows = measure_beside(points, [peer], Effort(2), warm=False)
    assert [row["engine"].split()[0] for row in rows] == ["lltool", "llama-cpp-python"] * 2
    assert all(0.01 < row["ratio"] < 100 for row in rows[1::2])
