"""Describes the machine and the build of a measurement, as plain JSON values."""

import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from lltool import __version__
from lltool.engine.cpu.tuning import cpu_name
from lltool.eval.common.provenance import tool_digest
from lltool.quant import _native, isa

# The processor flags that decide which kernels it can run.
_FLAGS = re.compile(r"(avx|fma$|f16c|sse4_|ssse3|amx|neon|asimd|i8mm|bf16|sve|sme$|sme2)")


def describe_machine(root: Path = Path("/")) -> dict[str, Any]:
    """Processor, memory, operating system and current load; None for what this system does not report.

    `frequency_mhz` is the highest that the governor allows or, without a governor, the current one.
    """
    info = _cpu_info(root)
    cpus = root / "sys/devices/system/cpu"
    highest = _number(cpus / "cpu0/cpufreq/scaling_max_freq")
    now = float(info["cpu MHz"]) if "cpu MHz" in info else None
    return {
        "cpu": cpu_name(),
        "cores": _count_cores(cpus),
        "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "flags": [flag for flag in info.get("flags", info.get("Features", "")).split() if _FLAGS.match(flag)],
        "isa": isa.chosen(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else None,
        "os": _system_name(root),
        "kernel": f"{platform.system()} {platform.release()}",
        "is_virtual": "hypervisor" in info.get("flags", "").split(),
        "governor": _read(cpus / "cpu0/cpufreq/scaling_governor"),
        "frequency_mhz": highest / 1e3 if highest else now,
        "load_average": float(load.split()[0]) if (load := _read(root / "proc/loadavg")) else None,
    }


@cache
def describe_build() -> dict[str, Any]:
    """Version, commit, digest of the sources and compiler of this build, and the Python and numpy that run it."""
    return {
        "version": __version__,
        "commit": _commit(),
        "digest": tool_digest(),
        "compiler": _compiler(Path(_native.__file__ or "")),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def identify_machine(machine: Mapping[str, Any]) -> str:
    """A key that is equal for runs on one machine or on one just like it; only their speeds are comparable."""
    memory = (machine.get("memory_bytes") or 0) / 2**30
    return f"{machine.get('cpu')}, {machine.get('cores')} cores, {memory:.0f} GiB, {machine.get('isa')}"


def _cpu_info(root: Path) -> dict[str, str]:
    """The fields of the first processor in /proc/cpuinfo."""
    pairs = (line.partition(":") for line in (_read(root / "proc/cpuinfo") or "").split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _count_cores(cpus: Path) -> int | None:
    """Physical cores: threads that share arithmetic units count once."""
    siblings = {_read(path) for path in cpus.glob("cpu[0-9]*/topology/thread_siblings_list")}
    return len(siblings) or os.cpu_count()


def _system_name(root: Path) -> str:
    """The name of the Linux distribution if there is one, else that of the platform."""
    named = re.search(r'^PRETTY_NAME="?([^"\n]*)', _read(root / "etc/os-release") or "", re.MULTILINE)
    return named.group(1) if named else platform.platform(terse=True)


def _commit() -> str | None:
    """The commit of the checkout that this package runs from, with `+` if files changed; None if installed."""
    folder = Path(__file__).resolve().parents[3]
    if not (folder / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty=+"]
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def _compiler(module: Path) -> str | None:
    """The compiler of a native module; GCC and clang leave their names in it."""
    if sys.platform == "win32" or not module.is_file():
        return None
    found = re.search(rb"GCC: \([^)]*\) [\d.]+|(?:Apple )?clang version [\d.]+", module.read_bytes())
    return found.group().decode() if found else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _number(path: Path) -> float | None:
    text = _read(path)
    return float(text) if text and text.isdigit() else None
