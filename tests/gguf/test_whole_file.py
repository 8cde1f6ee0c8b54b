"""Outputs appear complete or not at all, replace only the named file, and leave no temporary files."""

import errno
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lltool.gguf.errors import InputError
from lltool.gguf.whole_file import check_output, make_folder, scratch_folder, whole_file, whole_files

STALE = ".lltool-0123456789abcdef"


def write(path: Path, text: str = "new") -> None:
    with whole_file(path) as temporary:
        temporary.write_text(text)


def test_a_new_file_has_the_mode_that_open_gives(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("")
    write(tmp_path / "x")
    assert (tmp_path / "x").read_text() == "new"
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_symbolic_link_stays(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    target, link, chain = tmp_path / "far" / "target", tmp_path / "link", tmp_path / "chain"
    target.write_text("old")
    link.symlink_to("far/target")
    chain.symlink_to(link)
    write(chain)
    assert (link.is_symlink(), chain.is_symlink(), target.is_symlink()) == (True, True, False)
    assert target.read_text() == "new"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["chain", "far", "link", "target"]


def test_the_target_of_a_dangling_link_is_created(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("target")
    write(link)
    assert link.is_symlink()
    assert (tmp_path / "target").read_text() == "new"
    lost = tmp_path / "lost"
    lost.symlink_to("none/target")
    with pytest.raises(InputError, match="none: no such folder; make it first"):
        write(lost)


def test_a_cycle_of_links_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="Too many levels of symbolic links") as caught:
        write(tmp_path / "a")
    assert (caught.value.errno, caught.value.filename) == (errno.ELOOP, str(tmp_path / "a"))


@pytest.mark.parametrize("mode", [0o600, 0o664, 0o755])
def test_the_mode_is_kept(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    path.chmod(mode)
    write(path)
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("new", mode)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root may give files away")
def test_the_owner_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    os.chown(path, 1234, 4321)
    write(path)
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 4321)


def test_a_protected_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write everything, so the system's answer is replaced."""
    path = tmp_path / "x"
    path.write_text("old")
    monkeypatch.setattr(os, "access", lambda name, _: name != path)
    with pytest.raises(InputError, match="x: is protected from writing"):
        write(path)
    monkeypatch.setattr(os, "access", lambda name, _: name != tmp_path)
    with pytest.raises(InputError, match="no permission to write in this folder; write to another folder"):
        write(path)
    assert path.read_text() == "old"


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="no /dev/null")
def test_the_null_device_stays(tmp_path: Path) -> None:
    for path in (Path("/dev/null"), tmp_path / "link"):
        if path.name == "link":
            path.symlink_to("/dev/null")
        write(path)
        assert stat.S_ISCHR(path.stat().st_mode)
    assert (tmp_path / "link").is_symlink()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_device_that_is_full() -> None:
    with pytest.raises(InputError, match="/dev/full: the disk is full"):
        write(Path("/dev/full"))


def test_a_pipe_gets_the_whole_file(tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write(pipe, "through the pipe")
    reader.join()
    assert read == ["through the pipe"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_standard_output_is_not_replaced(tmp_path: Path) -> None:
    if not Path("/dev/stdout").exists():
        pytest.skip("no /dev/stdout")
    code = "import sys; from pathlib import Path; from lltool.gguf.whole_file import check_output as c\n"
    code += "try: c(Path('/dev/stdout'))\nexcept Exception as error: print(error, file=sys.stderr)"
    with (tmp_path / "out").open("w") as out:
        done = subprocess.run([sys.executable, "-c", code], stdout=out, stderr=subprocess.PIPE, text=True, check=True)
    assert "/dev/stdout: standard output or standard error goes there too" in done.stderr


def test_paths_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a folder, wanted the name of a file to write"):
        check_output(tmp_path)
    with pytest.raises(InputError, match="none: no such folder; make it first"):
        check_output(tmp_path / "none" / "x")
    (tmp_path / "x").write_text("")
    with pytest.raises(InputError, match="x: no such folder; make it first"):
        check_output(tmp_path / "x" / "y")
    (tmp_path / "same").symlink_to("x")
    with pytest.raises(InputError, match="same: would overwrite its own source"):
        check_output(tmp_path / "same", [tmp_path / "x"])


def test_a_name_of_255_bytes(tmp_path: Path) -> None:
    path = tmp_path / f"{'ä' * 126}.en"
    write(path)
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [(path.name, "new")]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError(), OSError(errno.EIO, "I/O error")])
def test_nothing_is_left_after_an_error(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(type(error)), whole_file(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise error
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("x", "old")]


def test_the_error_for_a_full_disk_names_the_target(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"x: the disk is full; free some space"), whole_file(tmp_path / "x"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(PermissionError) as caught, whole_file(tmp_path / "x") as temporary:
        raise PermissionError(errno.EACCES, "Permission denied", str(temporary))
    assert caught.value.filename == str(tmp_path / "x")


def test_several_files_appear_together(tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "folder" / "b"]
    paths[1].parent.mkdir()
    with pytest.raises(ValueError), whole_files(paths) as temporaries:  # noqa: PT011, PT012
        temporaries[0].write_text("first")
        raise ValueError
    assert [path.exists() for path in paths] == [False, False]
    with whole_files(paths) as temporaries:
        for temporary in temporaries:
            temporary.write_text("text")
        assert [path.exists() for path in paths] == [False, False]
    assert [path.read_text() for path in paths] == ["text", "text"]


def test_two_outputs_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("x")
    with (
        pytest.raises(InputError, match="link: is the name of two outputs"),
        whole_files([tmp_path / "x", tmp_path / "link"]),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    code = "import os, sys; from pathlib import Path; from lltool.gguf.whole_file import whole_file\n"
    code += "with whole_file(Path(sys.argv[1])) as file: file.mkdir(); (file / 'a').touch(); os.kill(os.getpid(), 9)"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "x"], check=False)
    assert done.returncode == -9
    assert len(list(tmp_path.glob(".lltool-*/x/a"))) == 1
    (tmp_path / STALE).mkdir()  # killed before it had a lock
    write(tmp_path / "y")
    assert [path.name for path in tmp_path.iterdir()] == ["y"]


def test_what_a_living_run_needs_stays(tmp_path: Path) -> None:
    with whole_file(tmp_path / "x") as temporary:
        temporary.write_text("first")
        write(tmp_path / "x", "second")
        assert temporary.read_text() == "first"
    assert (tmp_path / "x").read_text() == "first"


def test_folders_of_others_stay(tmp_path: Path) -> None:
    names = [".lltool-mine", ".lltool-0123456789ABCDEF", f"{STALE}.old"]
    for name in [*names, STALE]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("mine")
    write(tmp_path / "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, STALE, "x"])  # no lock, not empty


def test_many_threads_write_the_same(tmp_path: Path) -> None:
    threads = [threading.Thread(target=write, args=(tmp_path / "x", f"{number}")) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_text() in map(str, range(16))


def test_messages_name_the_place_and_not_the_scratch_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught, scratch_folder(tmp_path) as folder:
        raise InputError(f"{folder}/m.gguf: is bad")
    assert str(caught.value) == f"{tmp_path}/m.gguf: is bad"


def test_a_folder_is_made_but_not_those_above_it(tmp_path: Path) -> None:
    make_folder(tmp_path / "a")
    make_folder(tmp_path / "a")
    with pytest.raises(InputError, match="none: no such folder; make it first"):
        make_folder(tmp_path / "none" / "a")
    (tmp_path / "x").write_text("")
    with pytest.raises(InputError, match="x: not a folder"):
        make_folder(tmp_path / "x")
