"""What a source file was: its SHA-256, for the files made from it."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from threading import Event

_CHUNK = 1 << 20  # bytes


def sha256_of(paths: Sequence[Path], stop: Event | None = None) -> str:
    """Of one file; of several the digest of their digests. Ends early, with nothing of use, once `stop` is set."""
    digests = []
    chunk = memoryview(bytearray(_CHUNK))
    for path in paths:
        digest = hashlib.sha256()
        with path.open("rb", buffering=0) as file:
            while (size := file.readinto(chunk)) and not (stop and stop.is_set()):
                digest.update(chunk[:size])
        digests.append(digest.hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
