"""Files are the old ones or the new ones, never half of each."""

import stat

import pytest

from jointsvd.network.atomic import write_atomic


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
