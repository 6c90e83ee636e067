"""What is decided once for all processes of torch.distributed."""

from collections.abc import Callable
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, TypeVar, cast

from torch import distributed

T = TypeVar("T")
_PATIENCE = timedelta(days=7)  # NCCL's groups give up after minutes, which a large network may take
_deciding: ContextVar[bool] = ContextVar("deciding", default=False)  # inside `in_first_process` already


def several_processes() -> bool:
    """Whether torch.distributed joins this process with others."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def in_first_process(work: Callable[[], T]) -> T:
    """What `work` returns in the process of rank 0, in all processes, all of which call this; without torch.distributed
    just `work()`.

    An error of rank 0 is raised in all: a ValueError with its message, others as RuntimeError.
    """
    if _deciding.get() or not several_processes():
        return work()
    group = distributed.new_group(backend="gloo", timeout=_PATIENCE)  # it sends objects whatever the devices
    try:
        if distributed.get_rank():
            return cast(T, _received(group))
        token = _deciding.set(True)
        try:
            result = work()
        except Exception as error:
            known = isinstance(error, ValueError)
            message = str(error) if known else f"in rank 0: {type(error).__name__}: {error}"
            _send(ValueError(message) if known else RuntimeError(message), group)
            raise
        finally:
            _deciding.reset(token)
        _send(result, group)
        return result
    finally:
        distributed.destroy_process_group(group)


def _send(what: object, group: Any) -> None:
    distributed.broadcast_object_list([what], src=0, group=group)


def _received(group: Any) -> Any:
    box: list[Any] = [None]
    distributed.broadcast_object_list(box, src=0, group=group)
    if isinstance(box[0], Exception):
        raise box[0]
    return box[0]
