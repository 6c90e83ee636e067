"""Files that are never seen half written."""

import os
import re
import socket
import tempfile
from pathlib import Path


def write_atomic(path: str | Path, content: bytes | str) -> None:
    """Write a file so that, at any moment, either the old content or all of the new one is there.

    What killed processes left half written in that folder is removed. Raises OSError, saying that the old content is
    kept, where there is no room, or no permission.
    """
    path = Path(path)
    try:
        _write(path, content.encode() if isinstance(content, str) else content)
    except OSError as error:
        text = f"{path} was not written ({error.strerror or error}), what was there is kept"
        raise type(error)(error.errno, text) from error


def check_writable(path: str | Path) -> None:
    """Raises ValueError if no file can be written at `path`. Its folder is there afterwards, as `write_atomic` leaves
    it."""
    path = Path(path)
    try:
        if path.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror or error}); choose another place") from error


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path.parent)
    owner = f".{_host()}-{os.getpid()}-"
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}{owner}", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _remove_leftovers(folder: Path) -> None:
    """Files that processes of this machine were writing when they died."""
    for path in folder.glob(f".*.{_host()}-*-*.part"):
        number = path.name.rpartition(f".{_host()}-")[2].partition("-")[0]
        if number.isdigit() and not _lives(int(number)):
            path.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True


def _host() -> str:
    return re.sub(r"\W", "_", socket.gethostname())


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
