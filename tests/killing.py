"""Kills commands at random moments, and sees what they leave: `python -m tests.killing FOLDER KILLS`.

A command that is killed leaves its target as it was, or whole; the next run comes to the same end and cleans up.
"""

import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.metadata import string
from lltool.gguf.source import Model, Tensor
from lltool.gguf.writer import write_gguf
from tests.eval.tiny_text_model import random_text, write_text_model
from tests.tiny_checkpoints import make_checkpoint

CLI = (sys.executable, "-m", "lltool")
SCRATCH = ".lltool-*"


def whole(path: Path) -> Any:
    return path.read_bytes()


def baseline(path: Path) -> Any:
    """A baseline without its times."""
    return {key: value for key, value in json.loads(path.read_bytes()).items() if key != "speed"}


@dataclass(frozen=True)
class Job:
    """A command; `read` gives of each of its outputs what is the same whenever it runs."""

    name: str
    arguments: tuple[str, ...]
    read: dict[str, Callable[[Path], Any]]
    before: bytes | None = b"the file of an earlier run"
    grows: bool = False  # whole files on the way that are not the last one


@dataclass
class Outcome:
    kills: int = 0
    at_work: int = 0  # of them, while there was a temporary file
    finished: int = 0  # the command was faster
    faults: list[str] = field(default_factory=list)


def make_jobs(inputs: Path) -> list[Job]:
    """Commands on inputs made in a folder; outputs are named relative to where they run."""
    rows = np.random.default_rng(0).standard_normal((512, 1024)).astype(np.float16).view(np.uint8)
    read = lambda start, stop: np.resize(rows, (stop - start, 2048))  # noqa: E731
    tensors = [Tensor(f"blk.{i}.attn_q.weight", GGMLType.F16, (8192, 1024), read) for i in range(3)]
    write_gguf(inputs / "large.gguf", Model({"general.architecture": string("llama")}, tensors))
    model = str(write_text_model(inputs / "tiny.gguf"))
    checkpoint = make_checkpoint("llama", inputs / "checkpoint", hidden_size=512, intermediate_size=4096)
    (inputs / "text.txt").write_text(random_text(64 * 200))
    (inputs / "short.txt").write_text(random_text(700))
    text, short = str(inputs / "text.txt"), str(inputs / "short.txt")
    gguf = {"out.gguf": whole}
    return [
        Job("convert", ("convert", str(checkpoint), "-o", "out.gguf", "--outtype", "q4_k_m", "-t", "1"), gguf),
        Job(
            "convert --resume",
            ("convert", str(checkpoint), "-o", "out.gguf", "--outtype", "q4_k_m", "-t", "1", "--resume"),
            gguf,
        ),
        Job("quantize", ("quantize", str(inputs / "large.gguf"), "out.gguf", "Q4_K", "1"), gguf),
        Job("set", ("set", str(inputs / "large.gguf"), "general.name=str:A name", "-o", "out.gguf"), gguf),
        Job(
            "imatrix",
            (*("imatrix", "-m", model, "-f", text, "-o", "out.gguf"), *("-c", "64", "-b", "64", "-ofreq", "1")),
            gguf,
            before=None,
            grows=True,
        ),
        Job(
            "gate record",
            (
                *("gate", "record", "-m", model, "-f", short, "-o", "out.json"),
                *("-c", "64", "--chunks", "8", "-n", "4", "-t", "1"),
            ),
            {"out.json": baseline, "out.npz": whole},
            before=None,
        ),
    ]


def kill(job: Job, folder: Path, kills: int, generator: random.Random) -> Outcome:
    """Runs `job` undisturbed, then kills it so often, each time on top of what the last run left."""
    started = time.monotonic()
    expected = _run(job, folder / "undisturbed")
    seconds = time.monotonic() - started
    outcome = Outcome()
    for number in range(kills):
        place = folder / f"killed{number}"
        place.mkdir(parents=True)
        if job.before is not None and number % 2:
            for name in job.read:
                (place / name).write_bytes(job.before)
        with (place / "log").open("wb") as log:
            process = subprocess.Popen([*CLI, *job.arguments], cwd=place, stdout=log, stderr=log)
        _wait_for_a_moment(process, place, seconds, generator)
        process.kill()
        outcome.finished += process.wait() >= 0
        outcome.kills += 1
        outcome.at_work += any(place.glob(SCRATCH))
        for name, read in job.read.items():
            _check(f"{job.name}, kill {number}: {name}", place / name, read, expected[name], job, outcome)
        again = _run(job, place)
        outcome.faults += [f"{job.name}, rerun {number}: {n} differs" for n in again if again[n] != expected[n]]
        left = sorted(path.name for path in place.iterdir() if path.name not in {"log", *job.read})
        outcome.faults += [f"{job.name}, rerun {number}: left {left}"] if left else []
        shutil.rmtree(place)
    return outcome


def _wait_for_a_moment(
    process: "subprocess.Popen[bytes]", place: Path, seconds: float, generator: random.Random
) -> None:
    """Every third time any moment of the run, else one at which something is being written."""
    if generator.random() < 1 / 3:
        time.sleep(generator.uniform(0, seconds))
        return
    while process.poll() is None and not any(place.glob(SCRATCH)):
        time.sleep(0.001)
    time.sleep(generator.uniform(0, seconds / 3))


def _check(what: str, path: Path, read: Callable[[Path], Any], expected: Any, job: Job, outcome: Outcome) -> None:
    if not path.exists() or (job.before is not None and path.read_bytes() == job.before):
        return
    if job.grows:
        from lltool.quant.importance import read_importance

        read_importance(path)
    elif read(path) != expected:
        outcome.faults.append(f"{what} is neither what was there before nor whole")


def _run(job: Job, folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([*CLI, *job.arguments], cwd=folder, check=True, capture_output=True)
    return {name: read(folder / name) for name, read in job.read.items()}


def main() -> None:
    folder, kills = Path(sys.argv[1]), int(sys.argv[2])
    (folder / "inputs").mkdir(parents=True)
    jobs = make_jobs((folder / "inputs").absolute())
    for number, job in enumerate(jobs):
        share = kills // len(jobs) + (number < kills % len(jobs))
        print(job.name, kill(job, folder / job.name, share, random.Random(number)), flush=True)


if __name__ == "__main__":
    main()
