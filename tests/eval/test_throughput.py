"""The paired comparison with llama-cpp-python."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lltool.eval.peers import compare, format_pairings, peer_version
from lltool.eval.throughput import Workload

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
