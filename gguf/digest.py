"""What a source file was: its SHA-256, for the files made from it."""

import hashlib
from collections.abc import Sequence
from pathlib import Path


def sha256_of(paths: Sequence[Path]) -> str:
    """Of one file; of several the digest of their digests."""
    digests = []
    for path in paths:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
