"""Memory and load time of one configuration, in a process of its own: what else was loaded here does not count.

    python -m lltool.eval.bench.footprint JSON

is that process; it gets the settings and the workload, and answers with a line of JSON.
"""

import json
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter

from lltool.eval.bench.plan import Settings, Workload
from lltool.gguf.errors import InputError


@dataclass(frozen=True)
class Footprint:
    """`peak` is the most that was resident at once: the model's pages, cache, and 40 MB or so of Python and numpy.

    `private` of it is not the mapped file, which processes share and the system can drop. `load_ms` is until a loaded
    model is ready, `first_token_ms` until the logits behind a first token of a fresh process, both with the file in the
    system's cache, if it was there; importing is not in them. None for what the system does not tell.
    """

    load_ms: float
    first_token_ms: float
    peak: int | None
    private: int | None


def measure_footprint(ran: Settings, workload: Workload) -> Footprint:
    """Loads a model in a fresh process and fills its cache as the workload does, at the speed of a prompt.

    Raises InputError with the process's last words when it fails, as it does when memory runs out.
    """
    request = {"settings": asdict(ran) | {"model": str(ran.model)}, "workload": asdict(workload)}
    command = [sys.executable, "-m", __name__, json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"ended with code {done.returncode}"]
        raise InputError(f"{ran.model}: measuring its memory failed: {last[0]}")
    return Footprint(**json.loads(done.stdout))


def read_memory(process: Path = Path("/proc/self")) -> tuple[int | None, int | None]:
    """Bytes resident at most so far, and of those resident now, how many are of no file."""
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
    """Bytes; macOS counts in bytes what others count in KiB, and Windows has no such call."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def main(request: str) -> int:
    from lltool.eval.bench.runner import Runner

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
