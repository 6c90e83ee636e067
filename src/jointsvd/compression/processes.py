"""What is decided once for all processes of torch.distributed."""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeVar, cast

from torch import distributed

T = TypeVar("T")
_deciding: ContextVar[bool] = ContextVar("deciding", default=False)  # inside `in_first_process` already


def several_processes() -> bool:
    """Whether torch.distributed joins this process with others, which are waited for."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def in_first_process(work: Callable[[], T]) -> T:
    """What `work` returns in the process of rank 0, in all processes; without torch.distributed just `work()`.

    The others wait, no longer than the timeout of their process group. An error of rank 0 is raised in all: a
    ValueError with its message, others as RuntimeError.
    """
    if _deciding.get() or not several_processes():
        return work()
    if distributed.get_rank():
        return cast(T, _received())
    token = _deciding.set(True)
    try:
        result = work()
    except Exception as error:
        known = isinstance(error, ValueError)
        _send(ValueError(str(error)) if known else RuntimeError(f"in rank 0: {type(error).__name__}: {error}"))
        raise
    finally:
        _deciding.reset(token)
    _send(result)
    return result


def _send(what: object) -> None:
    distributed.broadcast_object_list([what], src=0)


def _received() -> Any:
    box: list[Any] = [None]
    distributed.broadcast_object_list(box, src=0)
    if isinstance(box[0], Exception):
        raise box[0]
    return box[0]
