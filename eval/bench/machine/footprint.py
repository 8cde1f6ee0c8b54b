"""Measures memory and load time of one configuration in a process of its own, where nothing else is loaded.

    python -m lltool.eval.bench.machine.footprint JSON

is that process; JSON holds the settings and the workload, and the process prints one line of JSON.
"""

import json
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter

from lltool.eval.bench.settings import Settings, Workload
from lltool.gguf.errors import InputError


@dataclass(frozen=True)
class Footprint:
    """Memory in bytes and times in milliseconds; None for what the system does not report.

    `peak` is the most memory that was resident at once: the model's pages, the cache, and about 40 MB of Python and
    numpy. `private` is the part outside the mapped file, whose pages processes share and the system can drop. `load_ms`
    ends when the model is loaded, `first_token_ms` when the logits after a first token are there. Both exclude imports,
    and read the file from the system's cache if it is there.
    """

    load_ms: float
    first_token_ms: float
    peak: int | None
    private: int | None


def measure_footprint(ran: Settings, workload: Workload) -> Footprint:
    """Loads a model in a fresh process and fills its cache with as many tokens as the workload has, all as a prompt.

    Raises InputError with the process's last line of stderr if it fails, for example because memory runs out.
    """
    request = {"settings": asdict(ran) | {"model": str(ran.model)}, "workload": asdict(workload)}
    command = [sys.executable, "-m", __name__, json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"ended with code {done.returncode}"]
        raise InputError(f"{ran.model}: measuring its memory failed: {last[0]}")
    return Footprint(**json.loads(done.stdout))


def read_memory(process: Path = Path("/proc/self")) -> tuple[int | None, int | None]:
    """The most bytes that were resident at once so far, and the bytes resident now that belong to no file."""
    try:
        lines = (process / "status").read_text().splitlines()
    except OSError:
        return _peak_elsewhere(), None
    fields = {
        name: int(value.split()[0]) << 10
        for name, _, value in (line.partition(":") for line in lines)
        if " kB" in value
    }
    return fields.get("VmHWM"), fields.get("RssAnon")


def _peak_elsewhere() -> int | None:
    """The peak in bytes where /proc is missing; macOS reports bytes, others KiB, and Windows has no such call."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def main(request: str) -> int:
    from lltool.eval.bench.run.runner import Runner

    asked = json.loads(request)
    settings = Settings(**asked["settings"] | {"model": Path(asked["settings"]["model"])})
    workload = Workload(**asked["workload"])
    start = perf_counter()
    runner = Runner(settings, [workload])
    ready = perf_counter()
    runner.run(Workload(1, 0))
    first = perf_counter()
    runner.run(replace(workload, prompt=workload.prompt + workload.generation, generation=0))
    peak, private = read_memory()
    runner.close()
    print(json.dumps(asdict(Footprint((ready - start) * 1e3, (first - start) * 1e3, peak, private))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
