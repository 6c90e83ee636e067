"""One GPU for each of several jobs on a machine."""

import getpass
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout


def gpu_names() -> list[str]:
    """Of the GPUs that this process sees, what no other GPU is called."""
    return [str(torch.cuda.get_device_properties(index).uuid) for index in range(torch.cuda.device_count())]


@contextmanager
def own_gpu(names: Sequence[str], folder: Path | None = None) -> Iterator[int | None]:
    """The index of a GPU that no other job of this user on this machine holds, waiting for one; None if there are none.
    A job that is killed gives its GPU back.

    names: by `gpu_names`. folder: of the locks, the machine's temporary one by default.
    """
    if not names:
        yield None
        return
    folder = folder or Path(tempfile.gettempdir()) / f"jointsvd-gpus-{getpass.getuser()}"
    folder.mkdir(parents=True, exist_ok=True)
    locks = [FileLock(folder / f"{name}.lock") for name in names]
    index = _first_free(locks)
    if index is None:
        print("Waiting for a GPU: other jobs hold them all")
    while index is None:
        time.sleep(1)
        index = _first_free(locks)
    try:
        yield index
    finally:
        locks[index].release()


def _first_free(locks: Sequence[FileLock]) -> int | None:
    for index, lock in enumerate(locks):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        return index
    return None
