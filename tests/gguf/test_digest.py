import hashlib
from pathlib import Path
from threading import Event

from lltool.gguf.digest import sha256_of


def test_of_one_file_and_of_several(tmp_path: Path) -> None:
    contents = [b"a" * 3_000_000, b""]
    paths = [tmp_path / "a", tmp_path / "b"]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    digests = [hashlib.sha256(content).hexdigest() for content in contents]
    assert sha256_of(paths[:1]) == digests[0]
    assert sha256_of(paths) == hashlib.sha256("".join(digests).encode()).hexdigest()


def test_it_stops_early_on_request(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    stop = Event()
    stop.set()
    assert sha256_of([tmp_path / "a"], stop) == hashlib.sha256(b"").hexdigest()
