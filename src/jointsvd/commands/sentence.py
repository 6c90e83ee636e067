"""How a command ends that cannot go on: in one sentence."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf.errors import OmegaConfBaseException

MISTAKES: tuple[type[Exception], ...] = (ValueError, FileNotFoundError, OmegaConfBaseException, HydraException)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE)


@contextmanager
def in_one_sentence(before: str = "", *also: type[Exception]) -> Iterator[None]:
    """Ends the command with the message of a mistake of its user's, or of a disk's; HYDRA_FULL_ERROR=1 shows where.
    A job of a sweep leaves the others to go on, but for a full disk: the sweep says in the end how many rows are
    missing. before: what the message begins with. also: further exceptions that are mistakes."""
    expected: tuple[type[Exception], ...] = (*MISTAKES, OSError, *also)
    try:
        yield
    except expected as error:
        if os.environ.get("HYDRA_FULL_ERROR"):
            raise
        text = f"{before}{sentence(error)}"
        stops = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
        if stops or not _in_sweep():
            raise SystemExit(text) from error
        print(f"{' '.join(HydraConfig.get().overrides.task)}: {text}", file=sys.stderr, flush=True)


def sentence(error: BaseException) -> str:
    """What went wrong; after a full disk or a limit also what to do."""
    text = str(error)
    if isinstance(error, OmegaConfBaseException):
        text = text.partition("\n")[0]
    if isinstance(error, OSError) and error.errno in _FULL:
        text += "; what was finished is kept: make room or raise the limit, then the same command goes on from it"
    return text


def _in_sweep() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
