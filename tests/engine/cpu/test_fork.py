"""A process that forks after it has loaded a model: its children end, and can use the model."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine import tiny_gguf

SCRIPT = """
import gc, multiprocessing, os, sys, time
import numpy as np
from lltool.engine.model import load_model

path, child = sys.argv[1:]
model = load_model(path, threads=2)
tokens = [1, 2, 3, 4, 5]

def logits():
    sequence = model.new_sequence()
    found = model.evaluate(sequence, tokens)
    sequence.free()
    return found

right = logits()
time.sleep(0.01)  # the pool's threads sleep

def use():
    assert all(np.array_equal(logits(), right) for _ in range(3))

if child == "multiprocessing":
    context = multiprocessing.get_context("fork")
    unused = context.Process(target=print)
    using = context.Process(target=use)
    for process in (unused, using):
        process.start()
        process.join()
        assert process.exitcode == 0
    sys.exit(0)
process = os.fork()
if process:
    status = os.waitpid(process, 0)[1]
    use()
    model.close()
    sys.exit(os.waitstatus_to_exitcode(status))
if child == "closes":
    model.close()
    gc.collect()
elif child == "uses":
    use()
    model.close()
elif child == "forks":
    process = os.fork()
    use()
    if process:
        assert os.waitpid(process, 0)[1] == 0
sys.exit(0)
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write_model(tmp_path_factory.mktemp("model") / "x.gguf", tiny_gguf.metadata(), tiny_gguf.tensors())


@pytest.mark.parametrize("child", ["exits", "closes", "uses", "forks", "multiprocessing"])
def test_a_forked_child_ends_and_can_use_the_model(path: Path, child: str) -> None:
    command = [sys.executable, "-c", SCRIPT, path, child]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
