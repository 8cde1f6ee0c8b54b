"""Measures energy with RAPL, the counters of Intel's and AMD's processors, which only root may read by default."""

from pathlib import Path


class EnergyMeter:
    """Sums the counters of all processor packages; they include what other processes use."""

    def __init__(self, root: Path = Path("/")) -> None:
        # `intel-rapl:0` is a package, `intel-rapl:0:0` a part of it, and `psys` holds the packages again.
        zones = (root / "sys/class/powercap").glob("intel-rapl:*")
        self._packages = [zone for zone in zones if _text(zone / "name").startswith("package")]
        self._before = self._read()

    def start(self) -> None:
        self._before = self._read()

    def stop(self) -> float | None:
        """Joules since `start`; None if there is no counter or we may not read it."""
        after = self._read()
        if not self._before or len(after) != len(self._before):
            return None
        used = 0
        for (now, modulus), (then, _) in zip(after, self._before, strict=True):
            used += now - then if now >= then else now - then + modulus
        return used / 1e6

    def _read(self) -> list[tuple[int, int]]:
        """For each package that we may read: the microjoules so far, and the count at which the counter wraps."""
        texts = [(_text(zone / "energy_uj"), _text(zone / "max_energy_range_uj")) for zone in self._packages]
        return [(int(now), int(modulus or 0)) for now, modulus in texts if now]


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
