"""Compressed networks on disk: one safetensors file, shared factors once, the plan in its metadata."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from jointsvd.network.atomic import write_atomic as write_atomic  # other rooms import it from here
from jointsvd.network.plan import Plan
from jointsvd.network.surgery import build_structure, check_structure

FORMAT = "jointsvd"
VERSION = "1"


def save_compressed(
    path: str | Path, model: nn.Module, plan: Plan, *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write the weights of `model` and the `plan` of its structure to one safetensors file, atomically.

    A dense network is saved with an empty plan. metadata: further strings for the file's header, such as how to build
    the dense network. Raises ValueError, before anything is written, for a model that does not have that structure.
    """
    check_structure(model, plan)
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in _unique_tensors(model).items()}
    plan_json = plan.to_json()
    header = {
        **(metadata or {}),
        "format": FORMAT,
        "version": VERSION,
        "plan": plan_json,
        "sha256": _digest(tensors, plan_json),
    }
    write_atomic(path, save(tensors, header))


def load_compressed(path: str | Path, dense_model: nn.Module) -> nn.Module:
    """The network saved at `path`, in the structure of `dense_model` (any network of that architecture; not changed).

    Weights take the dtypes of the file and the device of `dense_model`. Raises ValueError for a file that is missing,
    truncated, edited, of another format, or of another architecture.
    """
    tensors, header = _read(path)
    try:
        model = build_structure(dense_model, Plan.from_json(header["plan"]))
    except ValueError as error:
        raise ValueError(f"{path} does not fit this network: {error}") from error
    expected = _unique_tensors(model)
    missing, extra = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    if missing or extra:
        raise ValueError(
            f"{path} was saved from another architecture: it lacks {sorted(missing)[:3]} and has unknown "
            f"{sorted(extra)[:3]} ({len(missing)} and {len(extra)} in all)"
        )
    for key, tensor in expected.items():
        if tensor.shape != tensors[key].shape:
            raise ValueError(
                f"{path} was saved from another architecture: {key} has shape {tuple(tensors[key].shape)}, "
                f"this network needs {tuple(tensor.shape)}"
            )
        tensor.data = tensors[key].to(tensor.device)
    return model


def read_metadata(path: str | Path) -> dict[str, str]:
    """The header of a file by `save_compressed`: format, version, plan, sha256 and what else was saved with it.

    Raises ValueError as `load_compressed` does.
    """
    return _read(path)[1]


def is_compressed_file(path: str | Path) -> bool:
    """Whether `path` looks written by `save_compressed`, damaged or not."""
    if not Path(path).is_file():
        return False
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        start = file.read(min(length, 2**24))
    return b'"__metadata__"' in start and f'"format":"{FORMAT}"'.encode() in start


def _read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not Path(path).is_file():
        raise ValueError(f"no file at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no dict)
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or no safetensors file: {error}") from error
    if header.get("format") != FORMAT or not {"version", "plan", "sha256"} <= header.keys():
        raise ValueError(f"{path} was not written by jointsvd.save_compressed (a plain safetensors file?)")
    if header["version"] != VERSION:
        raise ValueError(f"{path} has format version {header['version']}; this release reads version {VERSION}")
    if _digest(tensors, header["plan"]) != header["sha256"]:
        raise ValueError(f"{path} was changed after it was written: its sha256 does not match its contents")
    return tensors, header


def _unique_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with every tensor under its first name only."""
    unique: dict[int, tuple[str, Tensor]] = {}
    for key, tensor in model.state_dict(keep_vars=True).items():
        unique.setdefault(id(tensor), (key, tensor))
    return dict(unique.values())


def _digest(tensors: Mapping[str, Tensor], plan_json: str) -> str:
    """sha256 of the plan and of each tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256(plan_json.encode())
    for key in sorted(tensors):
        tensor = tensors[key]
        digest.update(json.dumps([key, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy(force=True).tobytes() if tensor.numel() else b"")
    return digest.hexdigest()
