"""Descriptions of machine, build, energy, memory and latency, from made-up files and on this machine."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lltool.eval.bench.machine.energy import EnergyMeter
from lltool.eval.bench.machine.environment import _compiler, describe_build, describe_machine, identify_machine
from lltool.eval.bench.machine.footprint import measure_footprint, read_memory
from lltool.eval.bench.results.latency import Latency, summarize_latency
from lltool.eval.bench.run.plan import TimedRun, resolve
from lltool.eval.bench.settings import Settings, Workload
from lltool.gguf.errors import InputError
from lltool.quant import isa


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_machine_is_described_from_its_files(tmp_path: Path) -> None:
    cpus = "sys/devices/system/cpu"
    root = write(
        tmp_path,
        {
            "proc/cpuinfo": "processor\t: 0\nflags\t\t: fpu avx2 smep hypervisor fma\n\nprocessor\t: 1\n",
            "proc/loadavg": "1.25 0.5 0.1 2/99 1234\n",
            "etc/os-release": 'NAME="x"\nPRETTY_NAME="Debian GNU/Linux 12"\n',
            f"{cpus}/cpu0/topology/thread_siblings_list": "0,2\n",
            f"{cpus}/cpu1/topology/thread_siblings_list": "1,3\n",
            f"{cpus}/cpu2/topology/thread_siblings_list": "0,2\n",
            f"{cpus}/cpu3/topology/thread_siblings_list": "1,3\n",
            f"{cpus}/cpu0/cpufreq/scaling_governor": "powersave\n",
            f"{cpus}/cpu0/cpufreq/scaling_max_freq": "3200000\n",
        },
    )
    found = describe_machine(root)
    assert found["cores"] == 2
    assert found["flags"] == ["avx2", "fma"]
    assert (found["os"], found["is_virtual"], found["load_average"]) == ("Debian GNU/Linux 12", True, 1.25)
    assert (found["governor"], found["frequency_mhz"]) == ("powersave", 3200)
    assert found["isa"] == isa.chosen()
    assert json.loads(json.dumps(found)) == found


def test_an_unknown_system_is_described_too(tmp_path: Path) -> None:
    found = describe_machine(tmp_path)
    assert found["cores"] == os.cpu_count()
    assert found["flags"] == []
    assert (found["is_virtual"], found["governor"], found["frequency_mhz"], found["load_average"]) == (False,) + (
        None,
    ) * 3
    assert identify_machine(found) == identify_machine(describe_machine())  # it does not depend on the load


def test_a_build_names_its_compiler(tmp_path: Path) -> None:
    assert len(describe_build()["digest"]) == 64
    module = tmp_path / "native.so"
    module.write_bytes(b"\x7fELF\0GCC: (Debian 12.2.0-14) 12.2.0\0")
    assert _compiler(module) == "GCC: (Debian 12.2.0-14) 12.2.0"
    module.write_bytes(b"\0Apple clang version 17.0.0 (x)\0")
    assert _compiler(module) == "Apple clang version 17.0.0"
    assert _compiler(tmp_path / "none") is None


def zone(name: str, microjoules: int) -> dict[str, str]:
    return {"name": name, "energy_uj": f"{microjoules}\n", "max_energy_range_uj": "1000000000\n"}


def set_energy(root: Path, *packages: int) -> None:
    zones = {f"intel-rapl:{i}": zone(f"package-{i}", value) for i, value in enumerate(packages)}
    zones |= {"intel-rapl:0:0": zone("core", packages[0] // 2), "intel-rapl:9": zone("psys", sum(packages) * 2)}
    write(root, {f"sys/class/powercap/{z}/{name}": text for z, files in zones.items() for name, text in files.items()})


def test_energy_is_summed_over_packages_and_survives_a_counter_that_wraps(tmp_path: Path) -> None:
    set_energy(tmp_path, 5_000_000, 999_000_000)
    meter = EnergyMeter(tmp_path)
    meter.start()
    set_energy(tmp_path, 7_500_000, 2_000_000)
    assert meter.stop() == pytest.approx(2.5 + 3.0)


def test_no_energy_without_a_counter(tmp_path: Path) -> None:
    meter = EnergyMeter(tmp_path)
    assert meter.stop() is None
    write(tmp_path, {"sys/class/powercap/intel-rapl:0/name": "package-0\n"})  # we may not read its counter
    assert EnergyMeter(tmp_path).stop() is None


def test_latencies_are_over_all_tokens() -> None:
    tokens = list(range(1_000_000, 101_000_000, 1_000_000))  # 1 to 100 ms
    found = summarize_latency(
        [TimedRun(9_000_000, 5_000_000, tuple(tokens[::2])), TimedRun(7_000_000, 3_000_000, tuple(tokens[1::2]))]
    )
    expected = [float(np.percentile(np.arange(1, 101), p)) for p in (50, 95, 99)]
    assert [found.token_p50, found.token_p95, found.token_p99] == pytest.approx(expected)
    assert (found.ttft, found.total) == (4, 8)


def test_too_few_tokens_have_no_percentile() -> None:
    assert summarize_latency([TimedRun(2_000_000, 0, (1_000_000,) * 20)]) == Latency(None, 1, 1, None, 2)
    assert summarize_latency([TimedRun(2_000_000, 2_000_000)]) == Latency(2, None, None, None, 2)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_is_what_the_system_reports(tmp_path: Path) -> None:
    write(tmp_path, {"status": "Name:\tx y\nVmHWM:\t  2048 kB\nVmRSS:\t 1500 kB\nRssAnon:\t 1024 kB\nThreads:\t1\n"})
    assert read_memory(tmp_path) == (2 << 20, 1 << 20)
    before, _ = read_memory()
    block = np.ones(64 << 17)  # 64 MiB
    after, private = read_memory()
    assert before is not None
    assert after is not None
    assert private is not None
    assert block.nbytes <= private <= after
    assert read_memory(tmp_path / "none")[0] is not None  # other systems report only the peak


def test_footprint_grows_with_the_context(real_model: Callable[[str], Path]) -> None:
    path = real_model("smollm2-q4_1")
    settings = resolve(Settings(path, threads=1))
    small, large = (measure_footprint(settings, Workload(n, 1)) for n in (64, 1024))
    assert 0 < small.load_ms < small.first_token_ms
    assert small.peak is not None
    assert large.peak is not None
    assert small.private is not None
    assert small.peak - small.private > path.stat().st_size / 2  # its weights are pages of the file
    # 30 layers, keys and values, 3 heads of 64 values in f16: 23,040 bytes a token.
    assert large.peak - small.peak > 0.9 * 960 * 23_040


def test_a_failed_footprint_reports_the_reason(tmp_path: Path) -> None:
    settings = replace(resolve(Settings(tmp_path / "none.gguf")), threads=1)
    with pytest.raises(InputError, match=r"none\.gguf: measuring its memory failed: .*No such file"):
        measure_footprint(settings, Workload(8, 0))
