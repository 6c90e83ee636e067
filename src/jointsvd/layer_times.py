"""How long layers take on this device, dense and as factors of any rank: measured once a shape, and kept in a file."""

import json
import os
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor, nn

from jointsvd.files import write_atomic
from jointsvd.layers import FactorPair, MatrixLayer, is_matrix, unfolded_shape
from jointsvd.timing import latency, processor_name

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "jointsvd" / "layer_times.json"
_PASSES = 50
_SHARES = (0.1, 0.3, 0.6, 1.0)  # of the break-even rank: where a pair of factors is measured


@dataclass(frozen=True)
class LayerTimes:
    """Milliseconds for one batch. network: all of it, dense. layers: by name, (dense, fixed, per rank): as factors of
    rank r a layer takes fixed + r * per rank. A layer that runs twice takes both times."""

    network: float
    layers: Mapping[str, tuple[float, float, float]]


@torch.no_grad()
def measure_layer_times(model: nn.Module, images: Tensor, *, cache: Path = CACHE) -> LayerTimes:
    """Time `model` and each of its ungrouped Conv2d and Linear on `images` (N, ...), on their device.

    cache: a JSON file of what was measured before, on this device, with as many threads and this PyTorch. Damaged ones
    are written anew, and so are times that no longer hold (of the slowest layer, by a quarter). Raises ValueError if
    the network cannot run on the images.
    """
    inputs: dict[str, list[Tensor]] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda _, args: inputs.setdefault(name, []).append(args[0])

    copy = deepcopy(model).eval().requires_grad_(False)
    hooks = [module.register_forward_pre_hook(keep(name)) for name, module in copy.named_modules() if is_matrix(module)]
    try:
        copy(images)
    except RuntimeError as error:
        raise ValueError(f"the network cannot run on {tuple(images.shape)} of {images.dtype}: {error}") from error
    for hook in hooks:
        hook.remove()
    cache.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(cache.with_suffix(".lock")):  # one process measures at a time
        known, layers = _complete(_read(cache), copy, inputs), {}
        for name, calls in inputs.items():
            keys = [_key(copy.get_submodule(name), x) for x in calls]
            dense, fixed, per_rank = (sum(times) for times in zip(*(known[key] for key in keys), strict=True))
            layers[name] = (dense, fixed, per_rank)
        write_atomic(cache, json.dumps(known, indent=1))
        return LayerTimes(latency(copy, images).median, layers)


def _read(cache: Path) -> dict[str, list[float]]:
    try:
        values = json.loads(cache.read_text())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _complete(
    known: dict[str, list[float]], model: nn.Module, inputs: Mapping[str, list[Tensor]]
) -> dict[str, list[float]]:
    """The known times and those of the layers that are missing, or of all layers if what is known no longer holds."""
    layers = {name: model.get_submodule(name) for name in inputs}
    todo = {_key(layers[name], x): (layers[name], x) for name, calls in inputs.items() for x in calls}
    slowest = max(todo.keys() & known.keys(), key=lambda key: known[key][0], default=None)
    if slowest:
        layer, x = todo[slowest]
        if not 0.8 < latency(layer, x, passes=_PASSES).median / known[slowest][0] < 1.25:
            known = {key: times for key, times in known.items() if key not in todo}
    missing = {key: _measured(layer, x) for key, (layer, x) in todo.items() if key not in known}  # type: ignore[arg-type]
    return known | missing


def _key(layer: nn.Module, x: Tensor) -> str:
    """What a layer's time depends on."""
    where = f"{processor_name(x.device)}, {torch.__version__}, {x.dtype}"
    return f"{where}: {layer} on {tuple(x.shape)}, strides {x.stride()}"


def _measured(layer: MatrixLayer, x: Tensor) -> list[float]:
    """[dense, fixed, per rank], the last two by least squares through some ranks."""
    rows, columns = unfolded_shape(layer)
    largest = max(rows * columns // (rows + columns), 1)
    ranks = sorted({max(round(share * largest), 1) for share in _SHARES})
    times = [latency(_pair(layer, rank, x), x, passes=_PASSES).median for rank in ranks]
    dense = latency(layer, x, passes=_PASSES).median
    if len(ranks) == 1:
        return [dense, times[0], 0.0]
    fit = torch.linalg.lstsq(
        torch.tensor([[1.0, rank] for rank in ranks], dtype=torch.float64), torch.tensor(times, dtype=torch.float64)
    ).solution.tolist()
    return [dense, max(fit[0], 0.0), max(fit[1], 0.0)]


def _pair(layer: MatrixLayer, rank: int, x: Tensor) -> nn.Module:
    pair = FactorPair(layer, rank, bias=layer.bias is not None).eval().requires_grad_(False)
    last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return pair.to(memory_format=torch.channels_last) if last else pair
