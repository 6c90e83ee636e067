"""How long layers take on this device, dense and as factors of any rank: measured once a shape, and kept in a file."""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor, nn

from jointsvd.compression.budget import Engine
from jointsvd.compression.processes import in_first_process
from jointsvd.network.atomic import write_atomic
from jointsvd.network.interface import input_of
from jointsvd.network.layers import FactorLayer, is_matrix, unfolded_shape
from jointsvd.network.plan import Group, Plan
from jointsvd.network.progress import bar
from jointsvd.network.random_state import random_state_kept
from jointsvd.network.surgery import build_structure
from jointsvd.network.timing import latency, own_clock, processor_name, unwatched

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "jointsvd" / "layer_times.json"
_SHARES = (0.0, 0.05, 0.1, 0.3, 0.6, 1.0)  # of the break-even rank, 1 at least: where layers are measured as factors

_Watch = Callable[[], tuple[float, dict[str, float]]]
Lines = dict[str, list[float]]  # [dense, fixed, per rank] of a layer and its inputs, by what its time depends on


@dataclass(frozen=True)
class LayerTimes:
    """Milliseconds for one batch. network: all of it, dense. layers: by name, (dense, fixed, per rank): as factors of
    rank r a layer, and what follows it, takes fixed + r * per rank. A layer that runs twice takes both times."""

    network: float
    layers: Mapping[str, tuple[float, float, float]]


@dataclass(frozen=True)
class EngineClock:
    """What layers are timed by, and at multiples of which rank."""

    engine: Engine
    rank_multiple: int

    @property
    def key(self) -> str:
        """What times depend on, for the file; nothing for PyTorch and any rank."""
        multiple = f"multiples of {self.rank_multiple}, " if self.rank_multiple > 1 else ""
        return ("" if self.engine == "torch" else f"{self.engine}, ") + multiple

    def watched(self, network: nn.Module, images: Tensor, names: Iterable[str]) -> _Watch:
        """What measures all of the network, and its layers."""
        if self.engine == "torch":
            return lambda: _times(network, images, names)
        from jointsvd.deployment.profiled import profiled  # needs the extra "onnx"

        return profiled(network, images, names, self.engine)[1]


@random_state_kept()
def measure_layer_times(
    model: nn.Module,
    images: Tensor,
    engine: Engine | None = None,
    rank_multiple: int = 1,
    *,
    cache: Path = CACHE,
) -> LayerTimes:
    """Time `model` and each of its ungrouped Conv2d and Linear on `images` (N, ...), on their device, or in an engine.

    Layers are timed where they run, each until the next one starts, with the norms and activations between: by itself a
    layer would find its weights in the processor's cache. Factors are measured between two looks at the dense network,
    at its pace then. engine: PyTorch (None or "torch"), or ONNX Runtime on the CPU ("onnx", "int8"), where a rank takes
    the time of the next multiple of 16. rank_multiple: layers are measured at its multiples. cache: a JSON file of what
    was measured before, on this device, with as many threads and this PyTorch. Damaged ones are written anew, and so
    are times that no longer hold (of all layers together, by a quarter). In torch.distributed all processes get the
    times of rank 0. Raises ValueError if the network cannot run on the images, or runs no such layer.
    """
    where = EngineClock(engine or "torch", rank_multiple)
    return in_first_process(lambda: _measure(model, images, where, cache))


def paired_times(
    dense: nn.Module, compressed: nn.Module, images: Tensor, engine: Engine | None = None
) -> tuple[float, float]:
    """Milliseconds of both networks in an engine: medians of three looks at each, in turn. images: (N, ...)."""
    networks = [deepcopy(network).eval().requires_grad_(False) for network in (dense, compressed)]
    runs, timer = list[Callable[..., Any]](networks), own_clock(images.device)
    if engine in ("onnx", "int8"):
        from jointsvd.deployment.profiled import profiled  # needs the extra "onnx"

        runs = [profiled(network, images, (), engine)[0] for network in networks]
    before, after = zip(*([latency(run, images, timer=timer).median for run in runs] for _ in range(3)), strict=True)
    return median(before), median(after)


@torch.no_grad()
def _measure(model: nn.Module, images: Tensor, where: EngineClock, cache: Path) -> LayerTimes:
    dense = deepcopy(model).eval().requires_grad_(False)
    keys = {name: where.key + key for name, key in _keys(dense, images).items()}
    if not keys:
        raise ValueError("the network has no ungrouped Conv2d and no Linear that runs")
    cache.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(cache.with_suffix(".lock")):  # one process measures at a time
        watch = where.watched(dense, images, keys)
        network, now = watch()
        known = _read(cache)
        if not known.keys() >= set(keys.values()) or not 0.8 < _pace(known, keys, now) < 1.25:
            known |= _measured(dense, images, keys, where, watch)
            network, now = watch()
            write_atomic(cache, json.dumps(known, indent=1))
    pace = _pace(known, keys, now)
    layers = {name: tuple(pace * time for time in known[key]) for name, key in keys.items()}
    return LayerTimes(network, layers)  # type: ignore[arg-type]


def _read(cache: Path) -> Lines:
    """What the file holds, as far as it can be what was written."""
    try:
        values = json.loads(cache.read_text())
    except (OSError, ValueError):
        return {}
    return {key: line for key, line in values.items() if _is_line(line)} if isinstance(values, dict) else {}


def _is_line(line: Any) -> bool:
    """Whether it is [dense, fixed, per rank], the first above 0 and none below."""
    if not isinstance(line, list) or len(line) != 3:
        return False
    numbers = all(type(time) in (int, float) and isfinite(time) for time in line)
    return numbers and line[0] > 0 and min(line) >= 0


def _keys(model: nn.Module, images: Tensor) -> dict[str, str]:
    """What the time of each layer depends on, by its name, in the order they run."""
    inputs: dict[str, list[str]] = defaultdict(list)

    def keep(name: str, x: Tensor) -> None:
        inputs[name].append(f"{tuple(x.shape)}, strides {x.stride()}")

    matrices = {name: module for name, module in model.named_modules() if is_matrix(module)}
    hooks = [
        module.register_forward_pre_hook(
            lambda _, args, kwargs, name=name: keep(name, input_of(args, kwargs)), with_kwargs=True
        )
        for name, module in matrices.items()
    ]
    try:
        model(images)
    except RuntimeError as error:
        raise ValueError(f"the network cannot run on {tuple(images.shape)} of {images.dtype}: {error}") from error
    for hook in hooks:
        hook.remove()
    where = f"{processor_name(images.device)}, {torch.__version__}, {images.dtype}"
    return {name: f"{where}: {matrices[name]} on {'; '.join(calls)}" for name, calls in inputs.items()}


def _pace(known: Lines, keys: Mapping[str, str], now: Mapping[str, float]) -> float:
    """How long the dense layers take now, over how long they took when they were measured."""
    return sum(now.values()) / sum(known[key][0] for key in keys.values())


def _measured(dense: nn.Module, images: Tensor, keys: Mapping[str, str], where: EngineClock, watch: _Watch) -> Lines:
    """Of all layers of the network: dense, and a line through their times as factors of some ranks. Each rank is
    measured between two looks at the dense network, of whose time it takes a share."""
    points: dict[str, list[tuple[int, float]]] = defaultdict(list)
    looks = [watch()[1]]
    pace = sum(looks[0].values())
    for share in bar(_SHARES, "Timing layers"):
        ranks = {name: _rank(dense.get_submodule(name), share, where.rank_multiple) for name in keys}
        network = build_structure(dense, Plan(tuple(Group((name,), 0, rank) for name, rank in ranks.items())))
        times = where.watched(_filled(network), images, keys)()[1]
        looks.append(watch()[1])
        then = fmean(sum(look.values()) for look in looks[-2:])
        for name, time in times.items():
            points[keys[name]].append((ranks[name], time * pace / then))
    alike = {key: [name for name in keys if keys[name] == key] for key in points}
    dense_times = {
        key: fmean(look[name] * pace / sum(look.values()) for look in looks for name in names)
        for key, names in alike.items()
    }
    return {key: [dense_times[key], *_line(points[key])] for key in points}


def _filled(network: nn.Module) -> nn.Module:
    """The network with some weights in its factors: equal ones would be one for an engine, odd ones may be slow."""
    for layer in network.modules():
        if isinstance(layer, FactorLayer):
            for parameter in layer.parameters():
                nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return network.eval().requires_grad_(False)


def _rank(layer: Any, share: float, multiple: int) -> int:
    """A multiple near that share of the break-even rank, as far as the layer has so many."""
    rows, columns = unfolded_shape(layer)
    rank = max(round(share * (rows * columns // (rows + columns)) / multiple), 1) * multiple
    return min(rank, rows, columns)


def _line(points: list[tuple[int, float]]) -> list[float]:
    """[fixed, per rank], neither below 0, of least squared relative error: small ranks count as much as large ones."""
    ranks, times = torch.tensor(points, dtype=torch.float64).T
    columns = torch.stack([1 / times, ranks / times], 1)
    if ranks.unique().numel() == 1:
        return [times.mean().item(), 0.0]
    return torch.linalg.lstsq(columns, torch.ones_like(times)).solution.clamp_min(0).tolist()


def _times(network: nn.Module, images: Tensor, names: Iterable[str]) -> tuple[float, dict[str, float]]:
    """Milliseconds of the whole network by itself, and then of its layers, each until the next, which together take
    that long."""
    now = own_clock(images.device)
    whole, watched = latency(network, images, timer=now), deepcopy(network)
    passes: list[list[tuple[str, float]]] = []

    def run(x: Tensor) -> None:
        passes.append([("", now())])  # what comes before the first layer is no layer's
        watched(x)
        passes[-1].append(("", now()))

    for name in names:
        watched.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: passes[-1].append((name, now())))
    latency(run, images, passes=whole.passes, timer=now)
    spent: dict[str, list[float]] = {name: [0.0] * whole.passes for name in ("", *names)}
    for index, marks in enumerate(passes[-whole.passes :]):
        for (name, start), (_, end) in pairwise(marks):
            spent[name][index] += 1e3 * (end - start)
    looks = Counter(name for name, _ in passes[-1][:-1])
    found = unwatched({name: median(times) for name, times in spent.items()}, looks, whole.median)
    return whole.median, {name: found[name] for name in names}
