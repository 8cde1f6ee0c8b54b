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
    done: int = 0
    size: int = 0  # of the step that has begun
    title: str = ""

    def begin(self, title: str, size: int = 1) -> None:
        """The step counts as `size` of the total; what has begun before is done."""
        self.done += self.size
        self.size = size
        self.title = title
        self._tell(title)

    def inside(self, done: int, total: int, *_: object) -> None:
        self._tell(f"{self.title}, {done} of {total}")

    def end(self) -> None:
        self.begin("done", 0)

    def _tell(self, title: str) -> None:
        if self.progress:
            self.progress(self.done, self.total, title)
