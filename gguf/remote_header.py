"""The headers of GGUF models on the Hub, fetched without their matrices."""

import mmap
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lltool.gguf.errors import InputError
from lltool.gguf.header import Header, parse_header
from lltool.gguf.hub import HubName, list_model, open_remote
from lltool.gguf.reader import GGUFFile, open_gguf
from lltool.gguf.remote import Chunks, RemoteFile

_FIRST, _MOST = 1 << 20, 256 << 20  # bytes of a header that are fetched at once, and at most


@contextmanager
def open_remote_gguf(name: HubName, *, say: Callable[[str], None]) -> Iterator[GGUFFile | None]:
    """A model on the Hub, whose matrices read as zeros; None if the repository holds no GGUF model.

    Metadata and vectors are the model's. They lie in sparse files of its size, which are removed on exit. Raises
    InputError as `find_model` and `open_gguf` do.
    """
    revision, files = list_model(name, say)
    if not files:
        yield None
        return
    chunks = Chunks()
    with tempfile.TemporaryDirectory(prefix="lltool-header-") as folder:
        paths = [Path(folder) / Path(file).name for file in files]
        for file, path in zip(files, paths, strict=True):
            remote = open_remote(name.id, revision, file, chunks)
            try:
                _copy(remote, path)
            except InputError as error:
                raise InputError(str(error).replace(str(path), remote.name)) from None
        with open_gguf(paths[0]) as opened:
            yield opened


def _copy(remote: RemoteFile, path: Path) -> None:
    """Writes the header and the vectors of a file; everything else is a hole."""
    with path.open("w+b") as file:
        file.truncate(remote.size)
        header = _copy_header(remote, path)
        for tensor in header.tensors:
            if len(tensor.shape) == 1:
                file.seek(tensor.offset)
                file.write(remote.window(tensor.offset, tensor.offset + tensor.nbytes).tobytes())


def _copy_header(remote: RemoteFile, path: Path) -> Header:
    """Fetches as much as the header takes, which is known only once it is read."""
    with path.open("r+b") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))  # lives as long as the header's arrays
        count, done = _FIRST, 0
        while True:
            count = min(count, remote.size)
            file.seek(done)
            file.write(remote.read(done, count))
            file.flush()
            done, is_last = count, count >= min(_MOST, remote.size)
            try:
                header = parse_header(path, data)
                if header.entries[1] <= done:
                    return header
            except InputError:  # it does not end here, unless this is all of it
                if is_last:
                    raise
            if is_last:
                raise InputError(f"{path}: its header does not end within {done} bytes")
            count *= 4
