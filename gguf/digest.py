"""SHA-256 digests that identify the source of a file."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from threading import Event

from lltool.gguf.regular_file import open_regular

_CHUNK = 1 << 20  # bytes


def sha256_of(paths: Sequence[Path], stop: Event | None = None) -> str:
    """The SHA-256 of one file, or the digest of the digests of several.

    Once `stop` is set, it returns early and the result is meaningless.
    """
    digests = []
    chunk = memoryview(bytearray(_CHUNK))
    for path in paths:
        digest = hashlib.sha256()
        with open_regular(path) as file:
            while (size := file.readinto(chunk)) and not (stop and stop.is_set()):
                digest.update(chunk[:size])
        digests.append(digest.hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
