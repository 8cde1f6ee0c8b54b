"""The processor time of a server on this machine, which says what an answer costs also where others are busy."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_LISTENS = "0A"  # the state of a socket in /proc/net/tcp


@dataclass(frozen=True)
class ServerProcess:
    """The process that listens on a port, and those that it has started."""

    id: int
    root: Path = Path("/proc")

    def processor_seconds(self) -> float:
        """The time of all of them so far, of all their threads, in user and kernel mode."""
        parents: dict[int, int] = {}
        ticks: dict[int, int] = {}
        for process in _processes(self.root):
            try:
                # The name before it is in parentheses, and can contain anything.
                fields = (self.root / str(process) / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended
                continue
            parents[process] = int(fields[1])
            # Children that have ended are counted with their parent.
            ticks[process] = sum(map(int, fields[11:15]))
        total = sum(count for process, count in ticks.items() if self._is_ours(process, parents))
        return total / os.sysconf("SC_CLK_TCK")

    def _is_ours(self, process: int, parents: dict[int, int]) -> bool:
        while process not in (0, self.id):
            process = parents.get(process, 0)
        return process == self.id


def find_process(port: int, root: Path = Path("/proc")) -> ServerProcess | None:
    """The process that listens on a TCP port of this machine; None where the system does not say."""
    sockets = {f"socket:[{inode}]" for inode in _listening(port, root)}
    for process in _processes(root) if sockets else ():
        try:
            for link in (root / str(process) / "fd").iterdir():
                if str(link.readlink()) in sockets:
                    return ServerProcess(process, root)
        except OSError:  # it has ended, or belongs to somebody else
            continue
    return None


def _listening(port: int, root: Path) -> Iterator[str]:
    for name in ("tcp", "tcp6"):
        try:
            lines = (root / "net" / name).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == _LISTENS and int(fields[1].rpartition(":")[2], 16) == port:
                yield fields[9]


def _processes(root: Path) -> list[int]:
    try:
        return sorted(int(path.name) for path in root.iterdir() if path.name.isdigit())
    except OSError:
        return []
