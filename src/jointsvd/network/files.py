"""Compressed networks on disk: one safetensors file, shared factors once, the plan in its metadata."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from jointsvd.network.atomic import write_atomic
from jointsvd.network.copying import without_values
from jointsvd.network.plan import Plan
from jointsvd.network.random_state import random_state_kept
from jointsvd.network.surgery import build_structure, check_structure
from jointsvd.network.tensors import check_numbers, check_shapes, fill, unique_tensors

FORMAT = "jointsvd"
VERSION = "1"
HEADER_SHA256 = "header_sha256"


def save_compressed(
    path: str | Path, model: nn.Module, plan: Plan, *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write the weights of `model` and the `plan` of its structure to one safetensors file, atomically.

    A dense network is saved with an empty plan. metadata: further strings for the file's header, such as how to build
    the dense network. Raises ValueError, before anything is written, for a model that does not have that structure.
    """
    check_structure(model, plan)
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in unique_tensors(model).items()}
    plan_json = plan.to_json()
    header = {
        **(metadata or {}),
        "format": FORMAT,
        "version": VERSION,
        "plan": plan_json,
        "sha256": _digest(tensors, plan_json),
    }
    header[HEADER_SHA256] = _header_digest(header)
    write_atomic(path, save(tensors, header))


def load_compressed(path: str | Path, dense_model: nn.Module) -> nn.Module:
    """The network saved at `path`, in the structure of `dense_model` (any network of that architecture; not changed).

    Weights take the dtypes of the file and the device of `dense_model`, or the CPU if that is the meta device. Raises
    ValueError for a file that is missing, truncated, edited, of another format, of another architecture, or of numbers
    that are not finite or no floats where the network has floats, and for a network on the meta device with tensors
    that are not saved with its weights (buffers that are not persistent).
    """
    return load_with_header(path, dense_model)[0]


@random_state_kept()
def load_with_header(path: str | Path, dense_model: nn.Module) -> tuple[nn.Module, dict[str, str]]:
    """What `load_compressed` and `read_metadata` return, of a file that is read once. Raises as `load_compressed`."""
    with _opened(path) as file:
        header, plan = _checked_header(path, file.metadata())
        _check_architecture(path, dense_model, plan, file)  # before the weights take memory
        tensors = _tensors(path, header, file)
    model = build_structure(dense_model, plan)
    check_numbers(str(path), unique_tensors(model), tensors)
    fill(model, tensors)
    return model, header


def check_file(path: str | Path, dense_model: nn.Module) -> None:
    """Raises ValueError as `load_compressed` does, as far as the file's header tells: quick, and without memory for
    weights. dense_model: on the meta device, say."""
    with _opened(path) as file:
        _check_architecture(path, dense_model, _checked_header(path, file.metadata())[1], file)


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The weights in a file by `save_compressed`, a shared factor once. Raises ValueError for a file that is missing,
    truncated, of another format, or that was changed."""
    with _opened(path) as file:
        return _tensors(path, _checked_header(path, file.metadata())[0], file)


def read_metadata(path: str | Path) -> dict[str, str]:
    """The header of a file by `save_compressed`: format, version, plan, sha256 and what else was saved with it.

    sha256 is of the weights and the plan, header_sha256 of all else in the header (files by version 0.1 have none).
    Quick, because the weights are not read: that they are those of the sha256 is what `load_compressed` checks. Raises
    ValueError for a file that is missing, truncated, of another format, or whose header was changed.
    """
    with _opened(path) as file:
        return _checked_header(path, file.metadata())[0]


def is_compressed_file(path: str | Path) -> bool:
    """Whether `path` looks written by `save_compressed`, damaged or not."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            start = file.read(min(length, 2**24))
    except (OSError, ValueError):  # nothing there, a folder, a name that no file can have
        return False
    return b'"__metadata__"' in start and f'"format":"{FORMAT}"'.encode() in start


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    try:
        if not Path(path).is_file():
            raise ValueError(f"no file at {path}")
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or no safetensors file: {error}") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _checked_header(path: str | Path, header: dict[str, str] | None) -> tuple[dict[str, str], Plan]:
    header = header or {}
    if header.get("format") != FORMAT or not {"version", "plan", "sha256"} <= header.keys():
        raise ValueError(f"{path} was not written by jointsvd.save_compressed (a plain safetensors file?)")
    if header["version"] != VERSION:
        raise ValueError(f"{path} has format version {header['version']}; this release reads version {VERSION}")
    try:
        plan = Plan.from_json(header["plan"])
    except ValueError as error:
        raise ValueError(f"{path} was changed after it was written: {error}") from error
    if HEADER_SHA256 in header and header[HEADER_SHA256] != _header_digest(header):
        raise ValueError(f"{path} was changed after it was written: its header is not that of its {HEADER_SHA256}")
    return header, plan


def _tensors(path: str | Path, header: Mapping[str, str], file: Any) -> dict[str, Tensor]:
    tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no dict)
    if _digest(tensors, header["plan"]) != header["sha256"]:
        raise ValueError(f"{path} was changed after it was written: its sha256 does not match its contents")
    return tensors


def _check_architecture(path: str | Path, dense_model: nn.Module, plan: Plan, file: Any) -> None:
    """Raises ValueError unless the file's header has the names and shapes of the planned network."""
    try:
        empty = build_structure(without_values(dense_model), plan)
    except ValueError as error:
        raise ValueError(f"{path} does not fit this network: {error}") from error
    shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 (no dict)
    check_shapes(str(path), unique_tensors(empty), shapes)


def _digest(tensors: Mapping[str, Tensor], plan_json: str) -> str:
    """sha256 of the plan and of each tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256(plan_json.encode())
    for key in sorted(tensors):
        tensor = tensors[key]
        digest.update(json.dumps([key, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy(force=True).tobytes() if tensor.numel() else b"")
    return digest.hexdigest()


def _header_digest(header: Mapping[str, str]) -> str:
    """sha256 of all entries but its own."""
    entries = {key: value for key, value in header.items() if key != HEADER_SHA256}
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()
