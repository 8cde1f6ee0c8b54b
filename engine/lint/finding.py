"""What a check of a model file finds."""

from dataclasses import dataclass
from typing import Literal

# An error makes answers wrong or endless, or the file unusable; a warning can; a note is worth knowing.
Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One finding: `found` says what is so, `why` why it matters; `cure` are arguments of `lltool set` after the file.

    `check` names what was checked, such as "template".
    """

    severity: Severity
    check: str
    found: str
    why: str
    cure: tuple[str, ...] = ()
