"""Trained networks from files: compressed ones of ours, Lightning checkpoints, and state dicts from anywhere.

Files are data: safetensors, or torch.load with weights_only=True.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from jointsvd.network.files import check_file, is_compressed_file, load_compressed, read_metadata, read_tensors
from jointsvd.network.parsing import parse_json
from jointsvd.network.plan import Plan
from jointsvd.network.random_state import random_state_kept
from jointsvd.network.surgery import build_structure
from jointsvd.network.tensors import check_numbers, check_shapes
from jointsvd.training.models import build_model, empty_model

PREFIXES = ("module.", "model.", "network.")


@random_state_kept()
def load_network(path: str | Path, architecture: Mapping[str, Any] | None = None) -> nn.Module:
    """The network saved at `path`: a file or Lightning checkpoint of ours, or the state dict of a dense network.

    architecture: arguments of `build_model`, for files that do not say it themselves.
    Raises ValueError for a file that is missing, damaged, of another network, or that does not say what it is of; what
    it says is compared with its tensors before a network is built.
    """
    path = Path(path)
    ours = is_compressed_file(path)
    content = {} if ours else read_checkpoint(path)
    header = read_metadata(path) if ours else _header(path, content)
    if "architecture" in header:
        architecture = _architecture(path, header["architecture"], architecture)
    if architecture is None:
        raise ValueError(f"{path} does not say which network it is of; name it (model=resnet34, ...)")
    if ours:
        check_file(path, empty_model(**architecture))
        return load_compressed(path, build_model(**architecture))
    if not header:
        network = build_model(**architecture)
        _fill(network, _state_dict(path, content), path)
        return network
    state, plan = _state_dict(path, content), Plan.from_json(header["plan"])
    shapes = {key: tensor.shape for key, tensor in state.items()}
    check_shapes(str(path), build_structure(empty_model(**architecture), plan).state_dict(), shapes)
    network = build_structure(build_model(**architecture), plan)
    _fill(network, state, path)
    return network


def _header(path: Path, content: Mapping[str, Any]) -> Mapping[str, str]:
    """What a Lightning checkpoint of ours says about its network; {} for others."""
    header = content.get("header")
    if not isinstance(header, Mapping) or not {"architecture", "plan"} <= header.keys():
        return {}
    return header if all(isinstance(value, str) for value in header.values()) else {}


def _architecture(path: Path, text: str, given: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Arguments of `build_model` that a file gives. A file may choose a network, not a download, and no code to run:
    for a function of the user's it takes what is `given`."""
    known = {"name", "num_classes", "in_channels", "stem", "source", "arguments"}
    try:
        values = parse_json(text, "the architecture")
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
    Raises ValueError for a file that is missing, unreadable, damaged, of another network, or of numbers that are no
    floats where the network has floats.
    """
    _fill(model, _state_dict(Path(path), read_checkpoint(path)), path)


def _state_dict(path: Path, content: Mapping[Any, Any]) -> dict[str, Tensor]:
    state = content
    for key in ("state_dict", "model"):
        if isinstance(state.get(key), dict):
            state = state[key]
    named = bool(state) and all(isinstance(key, str) for key in state)
    for prefix in PREFIXES:
        if named and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    if not named or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no state dict of tensors")
    return dict(state)


def _fill(model: nn.Module, state: dict[str, Tensor], path: str | Path) -> None:
    own = model.state_dict(keep_vars=True)
    check_numbers(str(path), own, {key: value for key, value in state.items() if key in own}, finite=False)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path} holds another network: {str(error)[:500]}") from error


def check_finite(model: nn.Module, name: str) -> None:
    """Raises ValueError if a weight of `model`, called `name` in the message, is NaN or infinite."""
    bad = [key for key, value in model.state_dict().items() if not value.isfinite().all()]
    if bad:
        raise ValueError(
            f"{name} holds NaN or infinite values in {', '.join(bad[:3])} ({len(bad)} tensors in all): its training "
            "diverged; take another checkpoint, or train with a lower learning rate"
        )


def read_checkpoint(path: str | Path) -> dict[Any, Any]:
    """What is saved at `path`, as plain values and tensors. Raises ValueError for a file that is missing, or damaged as
    far as its checksums tell (torch.load does not look at them), or holds anything else."""
    path = Path(path)
    if is_compressed_file(path):
        return dict(read_tensors(path))
    try:
        if not path.is_file():
            raise FileNotFoundError(f"no checkpoint at {path}")
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        _check_zip(path)
        content = torch.load(path, "cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ValueError(str(error)) from error
    except Exception as error:  # a damaged file raises many kinds
        raise ValueError(f"{path} is no readable checkpoint of weights alone: {str(error)[:500]}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, no state dict of tensors")
    return content


def _check_zip(path: Path) -> None:
    """Raises ValueError unless the parts of a file by torch.save are as long as they say, and of their checksums."""
    if not zipfile.is_zipfile(path):
        return  # of PyTorch before 1.6, which kept no checksums
    with zipfile.ZipFile(path) as file:
        if sum(entry.file_size for entry in file.infolist()) > path.stat().st_size:
            raise ValueError("its parts are larger than the file: torch.save does not compress")
        if damaged := file.testzip():
            raise ValueError(f"{damaged} is not of its checksum; the file is damaged, or saved without checksums")
