"""Files are the old ones or the new ones, never half of each."""

import os
import resource
import signal
import stat

import pytest

from jointsvd.network.atomic import check_writable, write_atomic


def test_writing_is_atomic(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, "old")
    assert stat.S_IMODE(path.stat().st_mode) & stat.S_IRUSR

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def killed_while_writing(folder, name):
    """A process that dies by kill -9 when its file is half written."""
    process = os.fork()
    if not process:
        os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        write_atomic(folder / name, "half")
        os._exit(1)
    assert os.WIFSIGNALED(os.waitpid(process, 0)[1])


def test_what_killed_processes_left_is_removed_by_the_next_write(tmp_path):
    for index in range(20):
        killed_while_writing(tmp_path, f"file{index % 3}")
    left = list(tmp_path.iterdir())
    assert len(left) == 1  # each had removed the one before
    alive = tmp_path / left[0].name.replace(left[0].name.split("-")[-2], str(os.getpid()))
    elsewhere = tmp_path / ".file.another_host-1-abc.part"
    for path in (alive, elsewhere, tmp_path / ".file.mine", tmp_path / "file.part"):
        path.write_text("theirs")
    write_atomic(tmp_path / "file", "whole")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"file", alive.name, elsewhere.name, ".file.mine", "file.part"}


def test_a_full_disk_says_what_is_kept(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, "old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"file was not written \(File too large\), what was there is kept"):
            write_atomic(path, "new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_where_nothing_can_be_written(tmp_path):
    check_writable(tmp_path / "new" / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    (tmp_path / "file").write_text("")
    for path in ("/proc/x/y", tmp_path, tmp_path / "file" / "x", tmp_path / ("x" * 300)):
        with pytest.raises(ValueError, match="cannot be written"):
            check_writable(path)
