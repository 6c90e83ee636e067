"""A network run on images in parts that go in step: where a module asks for it, all parts come before any goes on.

Each part is a forward pass in a thread of its own, of which one works at a time, so that no forward has to be taken to
pieces. What waiting parts hold goes to a file where memory does not suffice (in the folder that `tempfile` takes).
"""

import ctypes
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import copy_context
from tempfile import TemporaryFile
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor, UntypedStorage
from torch.multiprocessing.reductions import StorageWeakRef

Tensors = tuple[Tensor, ...]
_thread = threading.local()


class Seen:
    """What all parts bring to a module, part by part, as often as it is asked for; no tensor of a part may be kept."""

    def __init__(self, brought: Sequence[Tensors], opened: Sequence[Callable[[], AbstractContextManager[None]]]):
        """opened: of each part, a context in which what it brought is in memory."""
        self._parts = list(zip(brought, opened, strict=True))

    @property
    def num(self) -> int:
        """Length of the first tensor, in all parts."""
        return sum(len(brought[0]) for brought, _ in self._parts)

    def __iter__(self) -> Iterator[Tensors]:
        for brought, opened in self._parts:
            with opened():
                yield brought


Meet = Callable[[Seen], None]  # what a module does when all parts have come


def together(meet: Meet, *brought: Tensor) -> None:
    """Called in a forward pass: `meet` gets what all parts bring, before any goes on; outside of `walk`, what the one
    pass there is brings."""
    part = getattr(_thread, "part", None)
    if part is None:
        meet(Seen([brought], [nullcontext]))
    else:
        part.wait(meet, brought)


def held(tensor: Tensor) -> Tensor:
    """Called in a forward pass, of a tensor of its own that it may still hold when it waits; returns the tensor."""
    part = getattr(_thread, "part", None)
    if part is not None:
        part.hold(tensor)
    return tensor


def walk(passes: Sequence[Callable[[], object]], room: int) -> None:
    """Run the passes in step. room: bytes that they may hold while they wait. Raises what a pass raises, and ValueError
    if they do not come to the same modules in the same order."""
    if len(passes) == 1:
        passes[0]()
        return
    kept = _Kept(room)
    parts = [_Part(work, kept) for work in passes]
    try:
        while True:
            stopped = [part.advance() for part in parts]
            if not any(stopped):
                return
            if len({part.meet for part in parts}) > 1:
                raise ValueError("images go different ways through this network: compress with refit=False")
            cast(Meet, parts[0].meet)(Seen([part.brought for part in parts], [part.opened for part in parts]))
    finally:
        for part in parts:
            part.abandon()


def _give_back() -> None:
    """Memory that nothing uses, to the system: glibc would keep some of every thread's."""
    with suppress(OSError, AttributeError):  # other C libraries have no such function
        ctypes.CDLL(None).malloc_trim(0)


class _Abandoned(BaseException):
    """Ends a pass whose result nobody needs; no `except Exception` of a forward stops it."""


class _Kept:
    """Bytes that may stay in memory while passes wait."""

    def __init__(self, room: int):
        self.room = room


class _Part:
    """A pass in a thread of its own. meet, brought: where it waits, and with what; None when it is over."""

    def __init__(self, work: Callable[[], object], kept: _Kept):
        self.meet: Meet | None = None
        self.brought: Tensors = ()
        self._work, self._kept, self._held = work, kept, dict[int, StorageWeakRef]()
        self._size = 0  # bytes kept in memory
        self._file: BinaryIO | None = None  # or where the storages are, by place and size
        self._places: dict[int, tuple[int, int]] = {}
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None
        self._over = False
        settings = _settings()
        self._thread = threading.Thread(
            target=lambda: copy_context().run(self._run, settings), name="walk", daemon=True
        )

    def advance(self) -> bool:
        """Let it run until it waits again; False if it is over."""
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._go.release()
        self._stopped.acquire()
        _give_back()
        if self._error:
            raise self._error
        return not self._over

    def abandon(self) -> None:
        if self._thread.ident is not None:
            self._over = True
            self._go.release()
            self._thread.join()
        if self._file:
            self._file.close()

    def _run(self, settings: Callable[[], Any]) -> None:
        _thread.part = self
        try:
            with settings():
                self._work()
        except _Abandoned:
            pass
        except BaseException as error:
            self._error = error
        finally:
            self._over, self.meet, self.brought = True, None, ()
            self._stopped.release()

    def hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage.resizable():
            self._held[storage._cdata] = StorageWeakRef(storage)

    def wait(self, meet: Meet, brought: Tensors) -> None:
        """In the thread."""
        self.meet, self.brought = meet, brought
        for tensor in brought:
            self.hold(tensor)
        self._put_away()
        self._stopped.release()
        self._go.acquire()
        if self._over:
            raise _Abandoned
        self.brought = ()
        self._bring_back(self._places)
        self._kept.room += self._size
        self._places, self._size = {}, 0

    def _put_away(self) -> None:
        storages = self._alive()
        size = sum(storage.nbytes() for storage in storages.values())
        if size <= self._kept.room:
            self._kept.room -= size
            self._size = size
            return
        self._file = self._file or cast(BinaryIO, TemporaryFile())  # noqa: SIM115 (closed by abandon)
        self._file.seek(0)
        for key, storage in storages.items():
            self._places[key] = (self._file.tell(), storage.nbytes())
            self._file.write(_buffer(storage.cpu()))
            storage.resize_(0)

    def _bring_back(self, keys: Any) -> None:
        storages = self._alive()
        for key in keys:
            if key in storages:
                place, size = self._places[key]
                storages[key].resize_(size)
                target = storages[key] if storages[key].device.type == "cpu" else UntypedStorage(size)
                assert self._file
                self._file.seek(place)
                cast(Any, self._file).readinto(_buffer(target))
                if target is not storages[key]:
                    storages[key].copy_(target, False)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """With what it brought in memory."""
        keys = {tensor.untyped_storage()._cdata for tensor in self.brought} & self._places.keys()
        self._bring_back(keys)
        try:
            yield
        finally:
            storages = self._alive()
            for key in keys:
                storages[key].resize_(0)

    def _alive(self) -> dict[int, UntypedStorage]:
        """What the pass was seen to hold, and still does."""
        found = {key: UntypedStorage._new_with_weak_ptr(ref.cdata) for key, ref in self._held.items()}
        self._held = {key: ref for key, ref in self._held.items() if found[key] is not None}
        return {key: storage for key, storage in found.items() if storage is not None}


def _buffer(storage: UntypedStorage) -> Any:
    return memoryview((ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())).cast("B")


def _settings() -> Callable[[], Any]:
    """What PyTorch keeps for each thread, as it is in this one."""
    grad, threads = torch.is_grad_enabled(), torch.get_num_threads()
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    cast_to = {name: (torch.is_autocast_enabled(name), torch.get_autocast_dtype(name)) for name in devices}

    @contextmanager
    def settings() -> Iterator[None]:
        torch.set_num_threads(threads)
        with torch.set_grad_enabled(grad):
            for name, (enabled, dtype) in cast_to.items():
                torch.set_autocast_enabled(name, enabled)
                torch.set_autocast_dtype(name, dtype)
            yield

    return settings
