"""Where training runs: the device, the number of processes and the precision that trainer options stand for; one GPU
for each of several jobs on a machine."""

import getpass
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, Literal

import pytorch_lightning as pl
import torch
from filelock import FileLock, Timeout
from pytorch_lightning.utilities import rank_zero_only

from jointsvd.network.checked import Count, Range, Whole, check_fields

_OURS = {"logger", "callbacks", "max_epochs", "check_val_every_n_epoch", "enable_checkpointing", "plugins"}
_OURS |= {"use_distributed_sampler", "enable_model_summary", "num_sanity_val_steps", "enable_progress_bar"}


@dataclass(frozen=True)
class Where:
    """Options of pl.Trainer that say where to train. devices: how many, all (-1, "auto"), or which."""

    accelerator: str = "auto"
    devices: Count | Literal[-1, "-1", "auto"] | Sequence[Whole] = 1
    num_nodes: Annotated[int, Range(1, 10_000)] = 1
    precision: str | int = "auto"
    strategy: str = "auto"


def check_options(trainer: Mapping[str, Any]) -> None:
    """Raises ValueError for options of pl.Trainer that are unknown, or of wrong types where they are used here. That
    this machine has such devices is not asked: the one that trains may be another."""
    if unknown := sorted(map(str, trainer.keys() - signature(pl.Trainer).parameters.keys())):
        raise ValueError(f"trainer.{unknown[0]} is no option of pytorch_lightning.Trainer")
    if ours := sorted(trainer.keys() & _OURS):
        raise ValueError(f"trainer.{ours[0]} follows from other options here; leave it out")
    where = Where(**{option.name: trainer[option.name] for option in fields(Where) if option.name in trainer})
    check_fields(where, "trainer.")
    if where.devices in ([], ()):
        raise ValueError("trainer.devices names no device; name one, or give their number")


def device_of(trainer: Mapping[str, Any]) -> torch.device:
    """Where trainer options train: on a GPU if there is one and it may; on the one that `devices` names."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    for name, there in available.items():
        if there and trainer["accelerator"] in ("auto", "gpu", name):
            devices = trainer.get("devices")
            if isinstance(devices, list) and len(devices) == 1:
                return torch.device(name, devices[0])
            return torch.device(name)
    return torch.device("cpu")


def num_processes(trainer: Mapping[str, Any]) -> int:
    """How many processes trainer options train with; -1 or "auto" devices are all GPUs there are."""
    devices = trainer["devices"]
    if devices in (-1, "-1", "auto"):
        devices = torch.cuda.device_count() if device_of(trainer).type == "cuda" else 1
    return int(devices if isinstance(devices, int | str) else len(devices)) * int(trainer.get("num_nodes", 1))


def resolve_precision(trainer: Mapping[str, Any]) -> str:
    """The precision "auto" stands for: bf16 autocast where the processor computes in bf16, float32 elsewhere."""
    precision = trainer["precision"]
    if precision != "auto":
        return str(precision)
    device = device_of(trainer).type
    if device == "mps":
        return "32-true"
    if device == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    capable = any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16"))
    return "bf16-mixed" if capable else "32-true"


def is_main_process() -> bool:
    """Whether this process writes: the only one, or rank 0 of a DDP run."""
    return getattr(rank_zero_only, "rank", 0) == 0 and os.environ.get("NODE_RANK", "0") == "0"


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
