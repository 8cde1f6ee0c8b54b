"""Interrupted writing continues: after kills at any moment the files are the same, and only whole tensors are kept."""

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lltool.gguf import resume as module
from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.metadata import string
from lltool.gguf.resume import Journal, Resume, kept_folder
from lltool.gguf.source import Bytes, Model, Tensor
from lltool.gguf.writer import Output, write_together

TENSORS, COLUMNS = 12, 50  # a row of F32 has 200 bytes, so that tensors end in padding
WINDOW = 3 * COLUMNS  # weights


def make_outputs(folder: Path) -> list[Output]:
    """Two outputs of the same tensors in different types, the second one in shards."""
    generator = np.random.default_rng(0)
    values = [generator.standard_normal((5 + n, COLUMNS)).astype(np.float32) for n in range(TENSORS)]
    outputs = []
    for name, type, shard_bytes in (("a.gguf", np.float32, None), ("b.gguf", np.float16, 3000)):
        tensors = []
        for number, rows in enumerate(values):
            data: Bytes = rows.astype(type).view(np.uint8)
            read = lambda start, stop, data=data: data[start:stop]  # noqa: E731
            ggml = GGMLType.F32 if type is np.float32 else GGMLType.F16
            tensors.append(Tensor(f"blk.{number}.attn_q.weight", ggml, rows.shape, read))
        metadata = {"general.architecture": string("llama"), "digest": string("0" * 8)}
        outputs.append(Output(folder / name, Model(metadata, tensors), shard_bytes=shard_bytes, has_room=True))
    return outputs


def write(folder: Path, identity: str = "same", moments: list[int] | None = None) -> list[str]:
    """Writes all outputs; `moments`, if given, gets the bytes done at each call of progress. Returns what was said."""
    said: list[str] = []
    write_together(
        make_outputs(folder),
        window_weights=WINDOW,
        progress=lambda done, total: None if moments is None else moments.append(done),
        seal=lambda: {"digest": string("12345678")},
        resume=Resume(identity, said.append),
    )
    return said


def listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    outputs = make_outputs(folder)
    write_together(outputs, window_weights=WINDOW, seal=lambda: {"digest": string("12345678")})
    return listing(folder)


def interrupt(folder: Path, calls: int) -> None:
    """Writes until progress was called so often."""
    moments: list[int] = []

    class Stop(list[int]):
        def append(self, done: int) -> None:
            moments.append(done)
            if len(moments) == calls:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(folder, moments=Stop())


def test_a_run_without_interruption_leaves_the_same_files(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    assert len(undisturbed) > 3
    assert write(tmp_path) == []
    assert listing(tmp_path) == undisturbed


def test_finished_tensors_are_kept(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    interrupt(tmp_path, 24)  # two tensors of two windows and two of three, in two outputs, make 20
    assert [path.name for path in tmp_path.iterdir()] == [".lltool-kept-a.gguf"]
    assert write(tmp_path) == ["continuing after 4 of 12 tensors, which are kept"]
    assert listing(tmp_path) == undisturbed


@pytest.mark.parametrize("output", ["a.gguf", "b-00001-of-00005.gguf"])
def test_a_kept_tensor_with_another_hash_is_written_again(
    output: str, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    interrupt(tmp_path, 24)
    path = tmp_path / ".lltool-kept-a.gguf" / output
    data = bytearray(path.read_bytes())
    at = undisturbed[output].index(make_outputs(tmp_path)[output[0] == "b"].source.tensors[2].data().tobytes())
    data[at] ^= 1  # in the third tensor
    path.write_bytes(data)
    assert write(tmp_path) == ["continuing after 2 of 12 tensors, which are kept"]
    assert listing(tmp_path) == undisturbed


def test_a_file_that_lost_its_padding_gets_it_back(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    interrupt(tmp_path, 24)
    path = tmp_path / ".lltool-kept-a.gguf" / "a.gguf"
    data = make_outputs(tmp_path)[0].source.tensors[3].data().tobytes()
    os.truncate(path, path.read_bytes().index(data) + len(data))
    assert write(tmp_path) == ["continuing after 4 of 12 tensors, which are kept"]
    assert listing(tmp_path) == undisturbed


def test_other_work_starts_anew(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    interrupt(tmp_path, 24)
    assert write(tmp_path, "another") == []
    assert listing(tmp_path) == undisturbed


def test_two_runs_do_not_write_the_same_file(tmp_path: Path) -> None:
    interrupt(tmp_path, 24)
    with (kept_folder(tmp_path / "a.gguf") / "journal").open("r+b") as journal:
        module._lock(journal, tmp_path)
        with pytest.raises(InputError, match=r"a\.gguf: another process is writing it; wait until it is done"):
            write(tmp_path)


def test_what_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    outputs = make_outputs(tmp_path)
    (tmp_path / "other").mkdir()
    elsewhere = Output(tmp_path / "other" / "b.gguf", outputs[1].source)
    with pytest.raises(InputError, match=r"a\.gguf: the outputs are in several folders, and --resume wants one"):
        write_together([outputs[0], elsewhere], resume=Resume("same"))
    with pytest.raises(InputError, match="null: not a file, so nothing can be kept of it; leave out --resume"):
        write_together([Output(Path(os.devnull), outputs[0].source)], resume=Resume("same"))


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed(folder: Path, generator: random.Random) -> bool:
    """Writes in a child process that is killed at a random moment; returns whether it got to the end."""
    calls = generator.randrange(1, 70)
    moment = generator.choice(["progress", "half a line", "no line", "moving"])
    child = os.fork()
    if not child:
        add, count = Journal.add, 0

        def add_less(journal: Journal, digests: list[str]) -> None:
            nonlocal count
            count += 1
            if count == 1 + calls % 6 and moment in ("half a line", "no line"):
                if moment == "half a line":
                    journal._file.write(module._line(digests)[:40])
                    journal._file.flush()
                die()
            add(journal, digests)

        class Moments(list[int]):
            def append(self, done: int) -> None:
                super().append(done)
                if len(self) == calls and moment == "progress":
                    die()

        Journal.add = add_less  # type: ignore[method-assign, assignment]
        if moment == "moving":
            move = module.move_into_place
            places: list[Path] = []

            def move_some(made: Path, path: Path) -> None:
                places.append(path)
                if len(places) > calls % 5:
                    die()
                move(made, path)

            module.move_into_place = move_some  # type: ignore[attr-defined]
        write(folder, moments=Moments())
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFEXITED(status) or os.WTERMSIG(status) == signal.SIGKILL
    return os.WIFEXITED(status)


def kill_often(folder: Path, wanted: dict[str, bytes]) -> None:
    """Fifty kills: each run continues after the last one, until one comes to the end; then the next file begins."""
    generator, kills = random.Random(0), 0
    while kills < 50:
        while not killed(folder, generator):
            kills += 1
        assert listing(folder) == wanted
        for path in folder.iterdir():
            path.unlink()


@pytest.mark.skipif(sys.platform == "win32", reason="kills by a signal")
def test_fifty_kills_give_the_same_files(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    # in a process of its own, because this one may have threads, which a fork would lose
    (tmp_path / "wanted").mkdir()
    for name, data in undisturbed.items():
        (tmp_path / "wanted" / name).write_bytes(data)
    (tmp_path / "killed").mkdir()
    program = (
        "import sys; from pathlib import Path; from tests.gguf.test_resume import kill_often, listing; "
        "kill_often(Path(sys.argv[1]), listing(Path(sys.argv[2])))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "killed"), str(tmp_path / "wanted")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not any((tmp_path / "killed").iterdir())
    shutil.rmtree(tmp_path / "wanted")
