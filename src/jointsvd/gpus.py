"""One GPU for each of several jobs on a machine."""

import getpass
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def own_gpu(num_gpus: int, folder: Path | None = None) -> Iterator[int | None]:
    """The index of a GPU that no other job of this user on this machine holds, waiting for one; None if there is no
    choice (num_gpus below 2). A job that is killed gives its GPU back.

    folder: of the locks, the machine's temporary one by default.
    """
    if num_gpus < 2:
        yield None
        return
    folder = folder or Path(tempfile.gettempdir()) / f"jointsvd-gpus-{getpass.getuser()}"
    folder.mkdir(parents=True, exist_ok=True)
    locks = [FileLock(folder / f"{index}.lock") for index in range(num_gpus)]
    while True:
        for index, lock in enumerate(locks):
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            try:
                yield index
            finally:
                lock.release()
            return
        time.sleep(1)
