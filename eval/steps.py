"""How far work of several steps is, for whoever watches it."""

from collections.abc import Callable
from dataclasses import dataclass

# Called with steps done, steps in all, and what is done now.
Progress = Callable[[int, int, str], None]


@dataclass
class Steps:
    """Tells `progress` of each step that begins, and how far it is inside."""

    progress: Progress | None
    total: int
    begun: int = 0
    title: str = ""

    def begin(self, title: str) -> None:
        self.begun += 1
        self.title = title
        self._tell(title)

    def inside(self, done: int, total: int, *_: object) -> None:
        self._tell(f"{self.title}, {done} of {total}")

    def end(self) -> None:
        self.begun += 1
        self._tell("done")

    def _tell(self, title: str) -> None:
        if self.progress:
            self.progress(self.begun - 1, self.total, title)
