"""Runs an installed llama-bench, of llama.cpp or of ik_llama.cpp, as a peer."""

import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import gettempdir
from typing import Any

from lltool.eval.bench.peers.peer import Engine, runs_in_one
from lltool.eval.bench.results.rows import LLAMA_BENCH_COLUMNS
from lltool.eval.bench.settings import SETTINGS, Settings, Workload
from lltool.gguf.errors import InputError


@dataclass(frozen=True)
class Mode:
    """A mode with or without repacked weights: the arguments for llama-bench and for llama-batched-bench."""

    name: str = ""
    single: tuple[str, ...] = ()
    batched: tuple[str, ...] = ()


# The modes by an option that llama-bench's help lists.
MODES: dict[str, tuple[Mode, ...]] = {
    "--repack": (Mode("repack", ("--repack", "1")), Mode("no repack", ("--repack", "0"), ("--no-repack",))),
    "-rtr": (Mode("repack", ("-rtr", "1"), ("-rtr",)), Mode("no repack", ("-rtr", "0"))),
    "--no-repack": (Mode("repack"), Mode("no repack", ("--no-repack",), ("--no-repack",))),
}
# A line of llama-batched-bench's table: PP, TG, B, N_KV, then seconds and speeds of the prompt and of the generation.
_BATCHED = re.compile(r"\|" + r" *(\d+) \|" * 4 + r" *([\d.]+) \| *[\d.]+ \| *([\d.]+) \|")
# The peer's row gives the columns that say how it ran; _KEPT are those of them that our row gives.
_TAKEN = tuple(LLAMA_BENCH_COLUMNS)[: tuple(LLAMA_BENCH_COLUMNS).index("n_prompt")]
_KEPT = ("cpu_info", "model_filename", "model_type", "model_size", "model_n_params", "n_gpu_layers")


@dataclass(frozen=True)
class LlamaBench:
    """The llama-bench at `path`."""

    path: Path

    def find_missing(self) -> str | None:
        try:
            return None if "--n-prompt" in self._help() else f"{self.path} is not a llama-bench: its help has no -p"
        except OSError as error:
            return f"{self.path} cannot be run ({error.strerror}); build llama-bench of llama.cpp, and name its path"

    def load(self, settings: Settings, runs: Sequence[Workload]) -> list[Engine]:
        words = set(re.findall(r"(?<!\S)-[-\w]+", self._help()))
        for run in runs:
            if run.sequences > 1:
                if not self.batched.exists():
                    raise InputError(
                        f"{self.batched}: not found, but -npl needs it beside llama-bench; build it, or leave out -npl"
                    )
            elif run.depth and "-d" not in words and ("-gp" not in words or run.prompt):
                raise InputError(f"{self.path}: this llama-bench cannot do {run}; leave out -d, or the peer")
        modes = next((modes for flag, modes in MODES.items() if flag in words), (Mode(),))
        family = "ik_llama.cpp" if "-rtr" in words else "llama.cpp"
        return [LoadedBench(self, settings, family, mode, frozenset(words)) for mode in modes]

    @property
    def batched(self) -> Path:
        """The program that runs several sequences."""
        return self.path.with_name(self.path.name.replace("llama-bench", "llama-batched-bench"))

    def _help(self) -> str:
        found = subprocess.run([self.path, "--help"], capture_output=True, text=True, check=False)
        return f"{found.stdout}\n{found.stderr}"


@dataclass
class LoadedBench:
    """One mode of llama-bench, which loads the model and warms up for each run; neither is timed."""

    programs: LlamaBench
    settings: Settings
    family: str
    mode: Mode
    words: frozenset[str]  # options that llama-bench has
    name: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)

    def time(self, workload: Workload, tokens: Sequence[int]) -> int:
        """Nanoseconds of one run; the program ignores `tokens` and draws its own."""
        if workload.sequences > 1:
            if not self.name:
                self._time(Workload(1, 0))  # llama-batched-bench does not name its build
            return self._time_batched(workload)
        return self._time(workload)

    def close(self) -> None:
        """Does nothing, because no process lives between the runs."""

    def _time(self, workload: Workload) -> int:
        count = runs_in_one(workload)
        row = self._run(workload, count)
        commit, samples = row.get("build_commit", "of an unnamed build"), row.get("samples_ns")
        if not (isinstance(samples, list) and len(samples) == count and all(isinstance(ns, int) for ns in samples)):
            raise InputError(f"{self.programs.path}: its JSON has samples_ns {samples!r}, wanted {count} whole numbers")
        self.name = f"{self.family} {commit} {self.mode.name}".rstrip()
        self.columns = {name: row[name] for name in _TAKEN if name in row and name not in _KEPT}
        return int(median(samples))

    def _time_batched(self, workload: Workload) -> int:
        """Nanoseconds of one run; generation alone follows `depth` tokens or one, as the program needs a prompt."""
        w, is_generation = workload, not workload.prompt
        if w.depth and not is_generation:
            raise InputError(f"{self.programs.batched}: cannot do {w}; leave out -d, or the peer")
        prompt = max(w.depth, 1) if is_generation else w.prompt
        room = w.sequences * -(-(prompt + w.generation) // 256) * 256  # llama.cpp rounds sequences up to 256
        lengths = ["-npp", f"{prompt}", "-ntg", f"{w.generation}", "-npl", f"{w.sequences}", "-c", f"{room}"]
        times = []
        for _ in range(runs_in_one(workload)):
            found = self._call(self.programs.batched, [*lengths, *self.mode.batched])
            printed = (found.stdout + found.stderr).splitlines()  # ik_llama.cpp's table is on stderr
            lines = [match for line in printed if (match := _BATCHED.match(line))]
            if len(lines) != 1:
                raise self._failure(self.programs.batched, w, found)
            first, rest = float(lines[0][5]), float(lines[0][6])
            times.append(rest if is_generation else first + rest)
        return round(median(times) * 1e9)

    def _run(self, workload: Workload, count: int) -> dict[str, Any]:
        w = workload
        test = ["-p", f"{w.prompt}", "-n", f"{w.generation}"]
        if w.depth and "-d" not in self.words:
            test = ["-p", "0", "-n", "0", "-gp", f"{w.depth},{w.generation}"]
        elif w.prompt and w.generation:
            test = ["-p", "0", "-n", "0", "-pg", f"{w.prompt},{w.generation}"]
        test += ["-d", f"{w.depth}"] if w.depth and "-d" in self.words else []
        found = self._call(self.programs.path, [*test, *self.mode.single, "-r", f"{count}", "-o", "json"])
        try:
            rows = json.loads(found.stdout) if found.returncode == 0 else None
        except ValueError:
            rows = None
        if not (isinstance(rows, list) and len(rows) == 1 and isinstance(rows[0], dict)):
            raise self._failure(self.programs.path, w, found)
        return rows[0]

    def _call(self, program: Path, arguments: Sequence[str]) -> "subprocess.CompletedProcess[str]":
        s = self.settings
        names = ["threads", "batch", "ubatch", "n_gpu_layers"]
        names += ["type_k", "type_v"] if (s.type_k, s.type_v) != ("f16", "f16") else []
        options = {setting.name: setting.options[0] for setting in SETTINGS}
        settings = [word for name in names for word in (options[name], getattr(s, name))]
        command = [program.absolute(), "-m", s.model.absolute(), *settings, *arguments]
        # Some builds write a log into the folder in which they run.
        return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, cwd=gettempdir())

    def _failure(self, program: Path, workload: Workload, found: "subprocess.CompletedProcess[str]") -> InputError:
        words = (found.stderr or found.stdout).strip().splitlines()
        return InputError(
            f"{program}: gave no result for {workload} of {self.settings.model.name}, exit code {found.returncode}: "
            f"{words[-1] if words else 'it printed nothing'}"
        )
