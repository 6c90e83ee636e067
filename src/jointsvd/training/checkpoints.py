"""Trained networks from files: compressed ones of ours, Lightning checkpoints, and state dicts from anywhere.

Files are data: safetensors, or torch.load with weights_only=True.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from jointsvd.network.files import is_compressed_file, load_compressed, read_metadata
from jointsvd.network.plan import Plan
from jointsvd.network.surgery import build_structure
from jointsvd.training.models import build_model


def load_network(path: str | Path, architecture: Mapping[str, Any] | None = None) -> nn.Module:
    """The network saved at `path`: a file or Lightning checkpoint of ours, or the state dict of a dense network.

    architecture: arguments of `build_model`, for files that do not say it themselves.
    Raises ValueError for a file that is missing, damaged, of another network, or that does not say what it is of.
    """
    path = Path(path)
    ours = is_compressed_file(path)
    header = read_metadata(path) if ours else _read(path).get("header") or {}
    if "architecture" in header:
        architecture = _architecture(path, header["architecture"], architecture)
    if architecture is None:
        raise ValueError(f"{path} does not say which network it is of; name it (model=resnet34, ...)")
    dense = build_model(**architecture)
    if ours:
        return load_compressed(path, dense)
    network = build_structure(dense, Plan.from_json(header["plan"])) if "plan" in header else dense
    load_weights(network, path)
    return network


def _architecture(path: Path, text: str, given: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Arguments of `build_model` that a file gives. A file may choose a network, not a download, and no code to run:
    for a function of the user's it takes what is `given`."""
    known = {"name", "num_classes", "in_channels", "stem", "source", "arguments"}
    try:
        values = json.loads(text)
    except ValueError:
        values = None
    if not isinstance(values, dict) or not {"name", "num_classes"} <= values.keys() <= known:
        raise ValueError(f"{path} names no network that this release can build: {text[:200]}")
    if values.get("source") == "python":
        if given is None or given["name"] != values["name"]:
            raise ValueError(
                f"{path} holds a network that {values['name']} builds; a file is not trusted to run code, so name the "
                f"function yourself (model._target_={values['name']})"
            )
        return given
    return values


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load the state dict at `path` into `model`, every key accounted for.

    A "state_dict" or "model" entry around it and a "module.", "model." or "network." before its keys are taken off.
    Raises ValueError for a file that is missing, unreadable, or of another network.
    """
    state: Any = _read(Path(path))
    for key in ("state_dict", "model"):
        if isinstance(state.get(key), dict):
            state = state[key]
    for prefix in ("module.", "model.", "network."):
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    if not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no state dict of tensors")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path} holds another network: {error}") from error


def check_finite(model: nn.Module, name: str) -> None:
    """Raises ValueError if a weight of `model`, called `name` in the message, is NaN or infinite."""
    bad = [key for key, value in model.state_dict().items() if not value.isfinite().all()]
    if bad:
        raise ValueError(
            f"{name} holds NaN or infinite values in {', '.join(bad[:3])} ({len(bad)} tensors in all): its training "
            "diverged; take another checkpoint, or train with a lower learning rate"
        )


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"no checkpoint at {path}")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # a damaged file raises many kinds
        raise ValueError(f"{path} is no readable checkpoint of weights alone: {error}") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, no state dict of tensors")
    return state
