"""Models that need not be there yet: what is known of a GGUF file or a checkpoint from its headers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lltool.gguf.hub import find_model, parse_hub_name
from lltool.gguf.reader import open_gguf
from lltool.gguf.remote_header import open_remote_gguf
from lltool.gguf.source import Source
from lltool.quant.convert.conversion import Wishes, plan_conversion


@dataclass(frozen=True)
class KnownModel:
    """A model of which the header and the vectors can be read, and the bytes of its GGUF file."""

    source: Source
    bytes: int


@contextmanager
def open_header(
    name: str, outtype: str = "auto", *, offline: bool = False, say: Callable[[str], None] = lambda text: None
) -> Iterator[KnownModel]:
    """The model of a GGUF file or a checkpoint, a folder of one, or an id on the Hub, of which only headers are read.

    A checkpoint is what `lltool convert` would make of it with `outtype`. Raises InputError as `find_model` and
    `plan_conversion` do.
    """
    path = Path(name).expanduser()
    hub = parse_hub_name(name)
    if path.is_dir() and (path / "config.json").exists() and not any(path.glob("*.gguf")):
        conversion = plan_conversion(path, outtype)
        yield KnownModel(conversion.model, conversion.file_bytes)
    elif path.exists() or hub is None or offline:
        with open_gguf(find_model(name, say=say)) as file:
            yield KnownModel(file, file.size)
    else:
        with open_remote_gguf(hub, say=say) as remote:
            if remote:
                yield KnownModel(remote, remote.size)
                return
        conversion = plan_conversion(hub.id, outtype, Wishes(remote=True))
        yield KnownModel(conversion.model, conversion.file_bytes)
