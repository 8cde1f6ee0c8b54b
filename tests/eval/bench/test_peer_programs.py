"""Programs that are peers: how each is named and called, and which error a failure gives."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lltool.eval.bench.peers.llama_bench import LlamaBench
from lltool.eval.bench.peers.pairing import measure_beside
from lltool.eval.bench.peers.python_peers import LlamaCppPython, Transformers, export_once
from lltool.eval.bench.peers.specification import parse_peer
from lltool.eval.bench.peers.worker import Worker
from lltool.eval.bench.run.plan import grid, resolve
from lltool.eval.bench.run.schedule import Effort
from lltool.eval.bench.settings import Settings, Workload
from lltool.gguf.errors import InputError
from tests.eval.bench.fake_bench import fake_bench

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


@pytest.fixture
def peer_python(tmp_path: Path) -> str:
    """A Python with the llama-cpp-python above."""
    (tmp_path / "llama_cpp.py").write_text(FAKE_LLAMA_CPP)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return str(python)


SETTINGS = resolve(Settings(Path("m.gguf"), threads=2))


def test_tests_that_peers_cannot_run_are_refused(tmp_path: Path) -> None:
    several = [Workload(8, 0, 0, 2)]
    for peer in (LlamaCppPython(), Transformers()):
        with pytest.raises(InputError, match="runs one sequence at a time; leave out -npl, or the peer"):
            peer.load(SETTINGS, several)
    with pytest.raises(InputError, match="llama-batched-bench: not found, but -npl needs it beside llama-bench"):
        LlamaBench(fake_bench(tmp_path).path).load(SETTINGS, several)
    with pytest.raises(InputError, match="--peer cannot be bound to processors with -C"):
        measure_beside(grid([tmp_path / "m.gguf"], [Workload(8, 0)], cpu_mask=["0x1"]), [Transformers()])


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
    engine.close()  # as after an error
    with pytest.raises(InputError, match="runs with a cache of f16"):
        peer.load(resolve(Settings(Path("m.gguf"), type_k="f32", type_v="f32")), runs)


def test_workers_that_fail_give_one_line(tmp_path: Path) -> None:
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


def test_several_sequences_run_in_llama_batched_bench(tmp_path: Path) -> None:
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
    assert plain.time(runs[0], ()) == 250_000_000  # as ik_llama.cpp's program reports it
    with pytest.raises(InputError, match="cannot do pp20 @ d300 x 8"):
        plain.time(Workload(20, 0, 300, 8), ())
    peer.batched.write_text("#!/bin/sh\necho no room >&2; exit 1")
    with pytest.raises(
        InputError, match=r"batched-bench: gave no result for tg16 x 8 of m\.gguf, exit code 1: no room"
    ):
        plain.time(runs[0], ())


def test_llama_bench_of_other_builds(tmp_path: Path) -> None:
    """ik_llama.cpp's build has -rtr, and -gp instead of -d; a build without repacking has one mode."""
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
        ("exit 0", "exit code 0: it printed nothing"),
    ],
)
def test_a_llama_bench_that_fails_gives_one_line(tmp_path: Path, script: str, message: str) -> None:
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
        ("vllm", "neither a peer nor a Python that can be run; wanted transformers"),
        ("/nonexistent/python", "nor a Python that can be run"),
        ("llama-cpp-python:", "nothing follows the colon"),
        ("llama-cpp-python:a:b", "wanted transformers"),
        (
            "transformers:int8",
            "int8 is neither a type .float32, bfloat16, float16., nor a folder with a config.json, nor a Python",
        ),
    ],
)
def test_names_that_are_not_peers(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_peer(text)


def test_llama_bench_without_a_path_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="there is none in PATH; give its path: llama-bench:PATH"):
        parse_peer("llama-bench")
    assert fake_bench(tmp_path) == parse_peer("llama-bench")


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
@pytest.mark.rival
def test_an_installed_llama_bench_runs(real_model: Callable[[str], Path]) -> None:
    path = shutil.which("llama-bench")
    if path is None:
        pytest.skip("needs llama-bench in PATH")
    points = grid([real_model("smollm2-q4_1")], [Workload(8, 0), Workload(4, 2, 4)], threads=[1])
    rows = measure_beside(points, [LlamaBench(Path(path))], Effort(2), warm=False)
    assert len(rows[1].settings["modes_ns"]) == 2
    assert all(0.01 < row.ratio < 100 for row in rows if row.ratio is not None)
    assert [(row.n_prompt, row.n_gen, row.n_depth) for row in rows] == [(8, 0, 0)] * 2 + [(4, 2, 4)] * 2
    assert rows[1].build_commit != rows[0].build_commit


@pytest.mark.slow
@pytest.mark.rival
def test_an_installed_llama_cpp_python_runs(real_model: Callable[[str], Path]) -> None:
    peer = LlamaCppPython()
    if peer.find_missing():
        pytest.skip("needs llama-cpp-python")
    points = grid([real_model("smollm2-q4_1")], [Workload(8, 0), Workload(4, 2, 4)], threads=[1])
    rows = measure_beside(points, [peer], Effort(2), warm=False)
    assert [row.engine.split()[0] for row in rows] == ["lltool", "llama-cpp-python"] * 2
    assert all(0.01 < row.ratio < 100 for row in rows[1::2])
