"""Room in a header, in which metadata can be changed without moving the tensors and without a moment of a broken file.

The keys of a file with room are in this order:

    lltool.room.head   an array of bytes that mean nothing
    small keys         such as token ids and the chat template
    lltool.room.tail   an array of bytes that mean nothing
    large keys         such as the vocabulary

The two arrays have room for a second copy of the small keys. An edit first writes the new copy, and a new beginning of
the second array, into them. Then one write changes the number of keys and the length of the first array, so that it
ends where the new copy begins. Both numbers lie in the first 64 bytes of the file, and a write within one page of
memory is not cut short when the process is killed: the file is at every moment the old one or the new one.
"""

import struct
from collections.abc import Mapping

import numpy as np

from lltool.gguf.header import COUNTS_AT, HEAD_BYTES, ROOM_HEAD, ROOM_TAIL, Header, align
from lltool.gguf.metadata import ValueType

ROOM = 16 << 10
"""The bytes by which the small keys of a new file can grow; a chat template has up to ten thousand."""

_LARGE = 64 << 10  # bytes of a key with its value, from which it has no second copy
_PAGE = 4096  # bytes; the smallest page of memory of any system


def lay_out_keys(keys: Mapping[str, bytes]) -> tuple[int, bytes]:
    """The number of keys and their bytes with room for edits; `keys` are the bytes of each key with its value."""
    small = b"".join(data for data in keys.values() if len(data) < _LARGE)
    large = b"".join(data for data in keys.values() if len(data) >= _LARGE)
    # A multiple of pages, so that a few bytes more in a value do not make the file larger.
    both = align(2 * (len(small) + len(_begin(ROOM_TAIL, 0))) + ROOM, _PAGE)
    spare = both - len(small) - len(_begin(ROOM_TAIL, 0))
    return len(keys) + 2, _begin(ROOM_HEAD, spare) + bytes(spare) + small + _begin(ROOM_TAIL, 0) + large


def plan_writes(header: Header, data: memoryview, keys: Mapping[str, bytes]) -> list[tuple[int, bytes]] | None:
    """The writes, offset and bytes, that make `keys` the metadata of a file; None if they need a new file.

    `data` is the file. The writes are to be made in order, each one on disk before the next one starts.
    """
    writes = _overwrite(header, data, keys)
    return writes if writes is not None else _write_beside(header, data, keys)


def _overwrite(header: Header, data: memoryview, keys: Mapping[str, bytes]) -> list[tuple[int, bytes]] | None:
    """A single write within a page, if nothing has to move for it."""
    if any(key not in header.places for key in keys) or any(key not in keys for key in header.metadata):
        return None
    before = np.frombuffer(data[HEAD_BYTES : header.entries[0]], np.uint8)
    after = before.copy()
    for key, new in keys.items():
        start, stop = header.places[key]
        if stop - start != len(new):
            return None
        after[start - HEAD_BYTES : stop - HEAD_BYTES] = np.frombuffer(new, np.uint8)
    changed = np.flatnonzero(before != after)
    if not len(changed):
        return []
    first, last = (HEAD_BYTES + int(changed[end]) for end in (0, -1))
    if first // _PAGE != last // _PAGE:
        return None
    return [(first, after[first - HEAD_BYTES : last + 1 - HEAD_BYTES].tobytes())]


def _write_beside(header: Header, data: memoryview, keys: Mapping[str, bytes]) -> list[tuple[int, bytes]] | None:
    """A write of the new copy of the small keys into the room, and one that makes it the valid copy."""
    places = header.places
    if places.get(ROOM_HEAD, (0, 0))[0] != HEAD_BYTES or ROOM_TAIL not in places:
        return None
    first, (tail, end) = places[ROOM_HEAD][1], places[ROOM_TAIL]
    large = [key for key, (start, _) in places.items() if start >= end]
    if any(keys.get(key) != bytes(data[slice(*places[key])]) for key in large):
        return None
    small = b"".join(new for key, new in keys.items() if key not in large)
    start = HEAD_BYTES + len(_begin(ROOM_HEAD, 0))
    room_for_tail = len(_begin(ROOM_TAIL, 0))
    needed = len(small) + room_for_tail
    if start + needed <= first:
        at = start
    elif end - needed >= tail + room_for_tail:
        at = end - needed
    else:
        return None
    copy = small + _begin(ROOM_TAIL, end - at - needed)
    head = struct.pack("<QQ", struct.unpack_from("<Q", data, COUNTS_AT)[0], len(keys) + 2)
    return [(at, copy), (COUNTS_AT, head + _begin(ROOM_HEAD, at - start))]


def _begin(key: str, count: int) -> bytes:
    """The bytes of a key whose value is an array of `count` bytes, up to those bytes."""
    name = key.encode()
    return struct.pack(f"<Q{len(name)}sIIQ", len(name), name, ValueType.ARRAY, ValueType.UINT8, count)


def keys_in(header: Header, data: memoryview) -> dict[str, bytes]:
    """The bytes of each key with its value, in the file's order."""
    return {key: bytes(data[slice(*header.places[key])]) for key in header.metadata}
