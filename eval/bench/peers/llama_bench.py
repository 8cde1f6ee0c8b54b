"""The peer that llama.cpp's users know: an installed llama-bench, of llama.cpp or of ik_llama.cpp."""

import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lltool.eval.bench.peers.peer import Engine
from lltool.eval.bench.plan import Settings, Workload
from lltool.eval.bench.record import LLAMA_BENCH_COLUMNS
from lltool.gguf.errors import InputError

# What the help offers for weights laid out anew for the processor, and the arguments of the modes with and without.
REPACKING: dict[str, dict[str, tuple[str, ...]]] = {
    "--repack": {"repack": ("--repack", "1"), "no repack": ("--repack", "0")},
    "-rtr": {"repack": ("-rtr", "1"), "no repack": ("-rtr", "0")},
    "--no-repack": {"repack": (), "no repack": ("--no-repack",)},
}
# Columns that say how the peer ran; what was measured, and names that ours gives, are not taken from it.
_TAKEN = tuple(LLAMA_BENCH_COLUMNS)[: tuple(LLAMA_BENCH_COLUMNS).index("n_prompt")]
_KEPT = ("cpu_info", "model_filename", "model_type", "model_size", "model_n_params", "n_gpu_layers")


@dataclass(frozen=True)
class LlamaBench:
    """The program at `path`."""

    path: Path

    def find_missing(self) -> str | None:
        try:
            return None if "--n-prompt" in self._help() else f"{self.path} is not a llama-bench: its help has no -p"
        except OSError as error:
            return f"{self.path} cannot be run ({error.strerror}); build llama-bench of llama.cpp, and name its path"

    def load(self, settings: Settings, runs: Sequence[Workload]) -> list[Engine]:
        words = set(re.findall(r"(?<!\S)-[-\w]+", self._help()))
        if any(run.depth for run in runs) and "-d" not in words:
            raise InputError(f"{self.path}: this llama-bench has no -d; leave out -d, or the peer")
        plain: dict[str, tuple[str, ...]] = {"": ()}
        modes = next((modes for flag, modes in REPACKING.items() if flag in words), plain)
        family = "ik_llama.cpp" if "-rtr" in words else "llama.cpp"
        return [LoadedBench(self.path, settings, family, mode, arguments) for mode, arguments in modes.items()]

    def _help(self) -> str:
        found = subprocess.run([self.path, "--help"], capture_output=True, text=True, check=False)
        return f"{found.stdout}\n{found.stderr}"


@dataclass
class LoadedBench:
    """One mode of it. The program loads the model and warms up for each run; neither is timed."""

    path: Path
    settings: Settings
    family: str
    mode: str
    arguments: tuple[str, ...]
    name: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)

    def time(self, workload: Workload, tokens: Sequence[int]) -> int:
        """Nanoseconds of one run; the program draws its own tokens."""
        row = self._run(workload)
        commit, samples = row.get("build_commit", "of an unnamed build"), row.get("samples_ns")
        if not (isinstance(samples, list) and len(samples) == 1 and isinstance(samples[0], int) and samples[0] > 0):
            raise InputError(f"{self.path}: its JSON has samples_ns {samples!r}, wanted one whole number")
        self.name = f"{self.family} {commit} {self.mode}".rstrip()
        self.columns = {name: row[name] for name in _TAKEN if name in row and name not in _KEPT}
        return samples[0]

    def close(self) -> None:
        """Nothing runs between the runs."""

    def _run(self, workload: Workload) -> dict[str, Any]:
        s, w = self.settings, workload
        test = ["-p", f"{w.prompt}", "-n", f"{w.generation}"]
        if w.prompt and w.generation:
            test = ["-p", "0", "-n", "0", "-pg", f"{w.prompt},{w.generation}"]
        test += ["-d", f"{w.depth}"] if w.depth else []
        sizes = ["-t", f"{s.threads}", "-b", f"{s.batch}", "-ub", f"{s.ubatch}", "-ngl", f"{s.n_gpu_layers}"]
        types = ["-ctk", s.type_k, "-ctv", s.type_v] if (s.type_k, s.type_v) != ("f16", "f16") else []
        command = [self.path, "-m", s.model, *test, *sizes, *types, *self.arguments, "-r", "1", "-o", "json"]
        found = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        try:
            rows = json.loads(found.stdout) if found.returncode == 0 else None
        except ValueError:
            rows = None
        if not (isinstance(rows, list) and len(rows) == 1 and isinstance(rows[0], dict)):
            words = (found.stderr or found.stdout).strip().splitlines()
            raise InputError(
                f"{self.path}: gave no result for {w} of {s.model.name}, exit code {found.returncode}: "
                f"{words[-1] if words else 'it said nothing'}"
            )
        return rows[0]
