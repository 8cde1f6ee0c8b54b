"""Fuzzes lltool's readers for a while and says what was found: `python -m tests.fuzz SECONDS [TARGET ...]`.

A time of 0 tries each target's own number of inputs, so that with a seed every machine tries the same ones.

Each target runs in a process of its own under atheris, which mutates inputs towards code not yet reached. A fault is an
exception other than InputError, a crash, more than 2 s of processor time or 1 GB of memory for one input. Its input is
kept in .cache/fuzz/faults; once mended it moves to tests/fuzz/mended, which `make test` runs through its target. Exit
code 1 where there are faults.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests.fuzz.targets import TARGETS

CACHE = Path(".cache/fuzz")
MEMORY = "/dev/shm"  # a folder that is quick to write to
GRACE_SECONDS = 120  # for starting, instrumenting and the seeds
MOST_SECONDS = 600  # for a number of inputs
ENVIRONMENT = {**os.environ, "PYTHONHASHSEED": "0"}  # the same order of sets in every run


class Outcome(NamedTuple):
    name: str
    inputs: int
    fault: str  # empty: none


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("seconds", type=int, help="for all targets together; 0: a number of inputs instead")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)} (default: all)")
    parser.add_argument("-j", "--jobs", type=int, default=2, help="targets at a time (default 2)")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations, for runs that repeat (default: random)")
    arguments = parser.parse_intermixed_args()
    names = arguments.targets or list(TARGETS)
    if unknown := set(names) - TARGETS.keys():
        parser.error(f"no target {min(unknown)}; there are {', '.join(TARGETS)}")
    seconds = -(-arguments.seconds * arguments.jobs // len(names))
    with ThreadPoolExecutor(arguments.jobs) as pool:
        outcomes = list(pool.map(lambda name: fuzz(name, seconds, arguments.seed), names))
    for outcome in outcomes:
        print(f"{outcome.name:12} {outcome.inputs:10,} inputs  {outcome.fault or 'no fault'}")
    print(f"{'together':12} {sum(outcome.inputs for outcome in outcomes):10,} inputs")
    return 1 if any(outcome.fault for outcome in outcomes) else 0


def fuzz(name: str, seconds: int, seed: int) -> Outcome:
    corpus, faults = CACHE / "corpus" / name, CACHE / "faults"
    for folder in (corpus, faults):
        folder.mkdir(parents=True, exist_ok=True)
    limits = ["-rss_limit_mb=1024", "-timeout=60", f"-artifact_prefix={faults}/{name}-"]
    limits.append(f"-max_total_time={seconds}" if seconds else f"-runs={TARGETS[name].inputs}")
    limits.append(f"-seed={seed}")  # libFuzzer takes 0 for a random one
    with tempfile.TemporaryDirectory(prefix="lltool-fuzz-", dir=MEMORY if Path(MEMORY).is_dir() else None) as scratch:
        command = [sys.executable, "-m", "tests.fuzz.child", name, str(corpus), scratch, *limits]
        try:
            most = (seconds or MOST_SECONDS) + GRACE_SECONDS
            done = subprocess.run(command, capture_output=True, timeout=most, env=ENVIRONMENT)
        except subprocess.TimeoutExpired:
            return Outcome(name, 0, "did not end")
    log = done.stderr.decode(errors="replace") + done.stdout.decode(errors="replace")
    (CACHE / f"{name}.log").write_text(log)
    counts = [int(count) for count in re.findall(r"^#(\d+)", log, re.M)]
    return Outcome(name, max(counts, default=0), "" if done.returncode == 0 else _describe(log, done.returncode))


def _describe(log: str, code: int) -> str:
    """The exception or signal, and the input's file."""
    exceptions: Sequence[str] = re.findall(r"Uncaught Python exception: ===\n(.*)$", log, re.M)
    errors = exceptions or re.findall(r"^==\d+== ?ERROR.*$", log, re.M)
    inputs = re.findall(r"Test unit written to (\S+)", log)
    return f"FAULT: {errors[0] if errors else f'exit code {code}'} (input: {inputs[0] if inputs else 'none'})"


if __name__ == "__main__":
    sys.exit(main())
