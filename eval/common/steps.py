"""Progress of work that consists of several steps."""

from collections.abc import Callable
from dataclasses import dataclass

# Called with the number of things done, and the total.
CountProgress = Callable[[int, int], None]
# Called with the number of steps done, the total if it is known, and the title of the current step.
TitledProgress = Callable[[int, int, str], None]


@dataclass
class Steps:
    """Reports to `progress` each step that begins, and the progress within it."""

    progress: TitledProgress | None
    total: int
    done: int = 0
    size: int = 0  # of the current step
    title: str = ""

    def begin(self, title: str, size: int = 1) -> None:
        """Begins a step that counts as `size` of the total, and ends the step before it."""
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
