"""The best numbers of threads on this machine: a search stores them in a file, and loading a model reads it."""

import json
import logging
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lltool.engine.cpu.threads import MAX_THREADS, Team, Threads, available_cpus, default_threads
from lltool.gguf.errors import InputError
from lltool.gguf.regular_file import read_bytes
from lltool.gguf.whole_file import whole_file
from lltool.quant import isa

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tuned:
    """The numbers of threads for one token and for a batch."""

    decode: int
    batch: int

    @property
    def threads(self) -> Threads:
        return Threads(Team(self.decode), Team(self.batch))

    @property
    def is_unusual(self) -> bool:
        """Whether a model without this entry would get other numbers."""
        return self != Tuned(default_threads(), default_threads())

    def describe(self) -> str:
        """Tells a user which numbers are used, and why."""
        return (
            f"threads: {self.decode} for one token, {self.batch} for many, as bench --autotune kept in "
            f"{tuning_file()}; -t overrides it"
        )


def tuning_file() -> Path:
    """The file that stores them."""
    return Path.home() / ".cache" / "lltool" / "threads.json"


def tuning_key(model_bytes: int) -> str:
    """The key of an entry: the machine, what this process may use of it, and the model size to a factor of two."""
    size_class = 1 << (max(model_bytes, 1 << 20) - 1).bit_length()
    cpus = f"{len(available_cpus())} processors, {default_threads()} cores"
    return f"{cpu_name()}, {cpus}, {isa.chosen()}, models to {size_class >> 20} MiB"


def cpu_name() -> str:
    """The vendor's name of the processor if the system states it, else the platform's."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def read_tuned(model_bytes: int, file: Path | None = None) -> Tuned | None:
    """The stored numbers; None if there are no valid ones: another version may have written the file, a cache."""
    found = _read(file or tuning_file()).get(tuning_key(model_bytes))
    most = min(MAX_THREADS, len(available_cpus()))
    match found:
        case {"decode": int(decode), "batch": int(batch)} if 1 <= decode <= most and 1 <= batch <= most:
            return Tuned(decode, batch)
    return None


def choose_threads(wanted: int | Threads | None, model_bytes: int, model: str) -> Threads:
    """The threads asked for, else those found to be best for models of this size, else one per core.

    It says so, with the name of the `model`, if a search found other numbers than one per core.
    """
    tuned = read_tuned(model_bytes) if wanted is None else None
    if tuned and tuned.is_unusual:
        _log.warning("%s: %s", model, tuned.describe())
    return tuned.threads if tuned else Threads.of(wanted)


def keep_tuned(model_bytes: int, tuned: Tuned, file: Path | None = None) -> Path:
    """Adds an entry to the file and returns its path. Raises InputError if the file cannot be written."""
    file = file or tuning_file()
    kept = _read(file) | {tuning_key(model_bytes): asdict(tuned)}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as temporary:
            temporary.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{file}: cannot be written: {error.strerror}") from error
    return file


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_bytes(file))
    except (InputError, OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
