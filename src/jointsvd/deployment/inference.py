"""A network made ready to run: each layer in its faster form, batch norms folded in, the better memory format."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import fuse_conv_bn_eval

from jointsvd.network.copying import copied
from jointsvd.network.interface import StandIn, input_of
from jointsvd.network.layers import (
    FactorLayer,
    FactorPair,
    MatrixLayer,
    TuckerConv2d,
    TwoBranches,
    is_matrix,
)
from jointsvd.network.random_state import random_state_kept
from jointsvd.network.shared import check_sharing
from jointsvd.network.surgery import replace
from jointsvd.network.timing import latency

_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
_TOLERANCE = 1e-4  # of the largest output
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """report: for each layer that was factored, its name, the milliseconds of an image batch as factors and multiplied
    out, and what was chosen. milliseconds: of the whole network in each memory format, the faster of which was chosen.
    """

    model: nn.Module
    report: list[dict[str, Any]]
    milliseconds: dict[str, float]


@random_state_kept()
@torch.inference_mode(False)
@torch.no_grad()
def prepare_for_inference(model: nn.Module, example_input: Tensor, *, passes: int = 30) -> Prepared:
    """A copy of `model` that computes the same faster, as measured here and now on `example_input` (N, ...).

    The branches of Bi-JSVD become one pair of factors; every factored layer stays so or is multiplied out, whichever is
    faster; batch norms go into the layer before them, unless that would change a factor that others share; then the
    faster of PyTorch's memory formats is taken. passes: timed, of which the median counts. `model` stays as it was.
    Raises ValueError for an input on another device, or that the network cannot run on, and for shared factors that
    came apart.
    """
    check_sharing(model)
    device = next((parameter.device for parameter in model.parameters()), example_input.device)
    if example_input.device != device:
        raise ValueError(f"the model is on {device}, example_input on {example_input.device}")
    names = _FORMATS if example_input.ndim == 4 else ["contiguous"]
    candidates = {name: _in_format(model, example_input, passes, _FORMATS[name]) for name in names}
    times = {name: milliseconds for name, (milliseconds, _, _) in candidates.items()}
    best = min(times, key=lambda name: times[name])
    _log.info("%s of %s ms", best, times)
    return Prepared(*candidates[best][1:], times)


def _in_format(
    model: nn.Module, images: Tensor, passes: int, memory_format: torch.memory_format
) -> tuple[float, nn.Module, list[dict[str, Any]]]:
    """Milliseconds of the fastest network in a memory format, that network, and a report on its layers."""
    copy = copied(model).eval().requires_grad_(False).to(memory_format=memory_format)
    images = images.contiguous(memory_format=memory_format) if images.ndim == 4 else images
    report = _choose(copy, images, passes, memory_format)
    copy = _folded(copy, images).to(memory_format=memory_format)
    return latency(copy, images, passes=passes).median, copy, report


def _choose(model: nn.Module, images: Tensor, passes: int, memory_format: torch.memory_format) -> list[dict[str, Any]]:
    """Put the faster form in the place of every factored layer."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, FactorLayer)}
    layers = {name: layer for name, layer in layers.items() if name.rpartition(".")[0] not in layers}  # not of branches
    inputs = _inputs(model, layers, images)
    report: list[dict[str, Any]] = []
    known: dict[Any, dict[str, float]] = {}  # layers of one shape and rank are measured once
    for name, layer in layers.items():
        if name not in inputs:
            continue  # it does not run
        pair = _one_pair(layer) if isinstance(layer, TwoBranches) else layer
        forms: dict[str, nn.Module] = {"factors": pair, "dense": multiplied_out(pair)}
        forms = {form: module.to(memory_format=memory_format) for form, module in forms.items()}
        alike = (repr(pair), inputs[name].shape)
        if alike not in known:
            known[alike] = {form: latency(m, inputs[name], passes=passes).median for form, m in forms.items()}
        times = known[alike]
        choice = min(times, key=lambda form: times[form])
        replace(model, layer, forms[choice])
        report.append({"layer": name, "choice": choice, **{f"{form} ms": time for form, time in times.items()}})
    return report


def _inputs(model: nn.Module, layers: Mapping[str, nn.Module], images: Tensor) -> dict[str, Tensor]:
    """What the layers receive; those that do not run are left out."""
    inputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda _, args, kwargs: inputs.update({name: input_of(args, kwargs)})

    hooks = [layer.register_forward_pre_hook(keep(name), with_kwargs=True) for name, layer in layers.items()]
    try:
        model(images)
    except RuntimeError as error:
        raise ValueError(f"the network cannot run on {tuple(images.shape)} of {images.dtype}: {error}") from error
    finally:
        for hook in hooks:
            hook.remove()
    return inputs


def multiplied_out(layer: FactorLayer) -> MatrixLayer:
    """The plain conv or linear layer that computes what `layer` does."""
    sizes: dict[str, Any] = {"bias": layer.bias is not None, "device": "meta"}
    plain: MatrixLayer
    weight = layer.weight.contiguous()
    if weight.ndim == 2:
        outputs, inputs = weight.shape
        plain = nn.Linear(inputs, outputs, **sizes)
    else:
        names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "padding_mode")
        plain = nn.Conv2d(**{name: getattr(layer, name) for name in names}, **sizes)
    plain.weight = nn.Parameter(weight, requires_grad=False)
    plain.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach(), requires_grad=False)
    return plain.eval()


def _one_pair(layer: TwoBranches) -> FactorPair:
    """``[U_n, U] [V; V_n]``: both branches as one pair, with factors of its own."""
    pair = deepcopy(layer.right)
    for joined, weight in zip((pair.u, pair.v), layer.joined(), strict=True):
        joined.weight = nn.Parameter(weight, requires_grad=False)
        if isinstance(joined, nn.Conv2d):
            joined.out_channels, joined.in_channels = weight.shape[:2]
    return pair


def _folded(model: nn.Module, images: Tensor) -> nn.Module:
    """A copy with each batch norm that alone follows a layer in that layer's weights, where these are its own; or
    `model`, if the copy computes something else."""
    folded = deepcopy(model)
    try:
        _fold_norms(folded)
        expected, found = model(images), folded(images)
        if torch.allclose(found, expected, rtol=0, atol=_TOLERANCE * float(expected.abs().max())):
            return folded
        _log.info("batch norms stay: folded, the network computes something else")
    except Exception as error:  # a forward with branches on values, say, cannot be traced
        _log.info("batch norms stay: %s", error)
    return model


def _fold_norms(model: nn.Module) -> None:
    graph = _Leaves().trace(model)
    modules = dict(model.named_modules())
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    users = Counter(id(parameter) for module in modules.values() for parameter in module._parameters.values())
    for node in graph.nodes:
        norm = modules.get(node.target) if node.op == "call_module" else None
        before = node.args[0] if type(norm) is nn.BatchNorm2d and norm.track_running_stats else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        layer = modules[before.target]
        last = layer.v if isinstance(layer, FactorPair) else layer.last if isinstance(layer, TuckerConv2d) else layer
        own = isinstance(last, nn.Conv2d) and users[id(last.weight)] == 1
        if own and calls[before.target] == calls[node.target] == 1:
            replace(model, last, fuse_conv_bn_eval(cast(nn.Conv2d, last), cast(nn.BatchNorm2d, norm)))
            replace(model, cast(nn.Module, norm), nn.Identity())


class _Leaves(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, StandIn) or is_matrix(module) or super().is_leaf_module(module, name)
