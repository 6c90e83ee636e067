"""Channels between two layers, some of which are dropped: what has such channels in a network, and the network without.

Whether a forward can do without some channels between two layers is not read from its code but tried: the network with
half of them must compute what the dense one computes where the reader finds zeros in the others.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves, tree_map

from jointsvd.network.copying import copied, like
from jointsvd.network.interface import input_of, what_would_be_lost
from jointsvd.network.layers import is_matrix
from jointsvd.network.plan import Narrowed
from jointsvd.network.random_state import random_state_kept
from jointsvd.network.replacing import replace

Ask = Callable[[nn.Module, Any], Any]
_FEWEST = 16  # channels, from which on some may go
_ROUNDING = 1e-6  # of what zeros change, in double precision


def narrow(network: nn.Module, narrowed: Iterable[Narrowed]) -> nn.Module:
    """Drop channels of `network`, in place; all else keeps its weights. Returns it. Raises ValueError for layers that
    are missing or have no such channels."""
    modules: dict[str, Any] = dict(network.named_modules())
    for item in narrowed:
        layers = [modules.get(name) for name in (item.writer, *item.between, item.reader)]
        _check(item, layers)
        index = torch.tensor(item.kept)
        _keep(layers[0], index, outputs=True)
        for layer in layers[1:-1]:
            _keep(layer, index, outputs=True)
        _keep(layers[-1], index, outputs=False)
    return network


def check_narrow(modules: Mapping[str, Any], narrowed: Iterable[Narrowed]) -> None:
    """Raises ValueError unless the layers write and read as many channels as are kept. modules: of a network, by name,
    maybe with factors in their place."""
    for item in narrowed:
        for name, sizes in (
            (item.writer, ("out_channels", "out_features")),
            (item.reader, ("in_channels", "in_features")),
        ):
            if len(item.kept) not in [getattr(modules.get(name), size, None) for size in sizes]:
                raise ValueError(f"{name}: the network does not have the {len(item.kept)} channels of the plan there")


def _check(item: Narrowed, layers: list[Any]) -> None:
    right = is_matrix(layers[0]) and is_matrix(layers[-1]) and type(layers[0]) is type(layers[-1])
    num = _outputs(layers[0]) if right else 0
    if not right or _inputs(layers[-1]) != num or not all(_is_between(layer, num) for layer in layers[1:-1]):
        raise ValueError(f"{item.writer} and {item.reader}: the network has no such channels between them")
    if item.kept[-1] >= num:
        raise ValueError(f"{item.writer}: it has {num} channels, and no channel {item.kept[-1]}")


def _outputs(layer: Any) -> int:
    return int(layer.weight.shape[0])


def _inputs(layer: Any) -> int:
    return int(layer.weight.shape[1])


def _is_between(layer: Any, num: int) -> bool:
    """Whether a layer has values for each of `num` channels, and mixes none."""
    if isinstance(layer, _BatchNorm):
        return layer.num_features == num
    return isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels == layer.out_channels == num


def _keep(layer: Any, index: Tensor, *, outputs: bool) -> None:
    """Of a layer's outputs or inputs, in place."""
    if not outputs:
        layer.weight = _some(layer.weight, index, 1)
    else:
        for tensors in (layer._parameters, layer._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and tensor.ndim:
                    tensors[name] = _some(tensor, index, 0)
    names = ("out_channels", "out_features", "num_features") if outputs else ("in_channels", "in_features")
    if getattr(layer, "groups", 1) > 1:
        names = (*names, "in_channels", "groups")
    for name in names:
        if hasattr(layer, name):
            setattr(layer, name, len(index))


def _some(tensor: Tensor, index: Tensor, dim: int) -> Tensor:
    found = tensor.detach().index_select(dim, index.to(tensor.device))
    return like(nn.Parameter(found, requires_grad=False), tensor) if isinstance(tensor, nn.Parameter) else found


def some(layer: nn.Module, x: Tensor, kept: Tensor) -> Tensor:
    """These channels of what a layer reads or writes."""
    return x.index_select(_dim(layer, x), kept.to(x.device))


def spread(layer: nn.Module, x: Tensor, kept: Tensor, num: int) -> Tensor:
    """`num` channels, of which these are x and the others 0."""
    dim = _dim(layer, x)
    shape = [num if place == dim else size for place, size in enumerate(x.shape)]
    return x.new_zeros(shape).index_copy(dim, kept.to(x.device), x)


def _dim(layer: nn.Module, x: Tensor) -> int:
    return x.ndim - 1 if isinstance(layer, nn.Linear) else 1


@random_state_kept()
@torch.no_grad()
def inner_channels(model: nn.Module, image: Any, ask: Ask = nn.Module.__call__) -> list[Narrowed]:
    """Where `model` has channels that can be dropped, in the order in which they are written, all of them kept: written
    by one conv or linear layer, read by one, with norms and depthwise convs between that treat each by itself. None
    where the forward cannot run in double precision, in which this is tried."""
    network, image = copied(model).eval().double(), tree_map(_doubled, image)
    try:
        candidates, whole = list(_candidates(network, image, ask)), _values(ask(network, image))
    except Exception:  # whatever a forward may say that knows single precision alone
        return []
    return [item for item in candidates if _can_be_dropped(network, image, ask, item, whole)]


def _doubled(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _candidates(network: nn.Module, image: Any, ask: Ask) -> Iterator[Narrowed]:
    """What runs one after another; whether it is also all that meets these channels is to be tried."""
    ran, modules = _ran(network, image, ask), dict(network.named_modules())
    calls, users = Counter(ran), Counter(id(p) for m in network.modules() for p in m._parameters.values())

    def own(name: str) -> bool:
        layer = modules[name]
        parameters = [id(p) for p in layer._parameters.values() if p is not None]
        return calls[name] == 1 and all(users[key] == 1 for key in parameters) and not what_would_be_lost(layer)

    for place, reader in enumerate(ran):
        if not (is_matrix(modules[reader]) and own(reader) and _inputs(modules[reader]) >= _FEWEST):
            continue
        num, between = _inputs(modules[reader]), list[str]()
        for name in reversed(ran[:place]):
            if not own(name):
                break
            if _is_between(modules[name], num):
                between.insert(0, name)
                continue
            writer = modules[name]
            if is_matrix(writer) and type(writer) is type(modules[reader]) and _outputs(writer) == num:
                yield Narrowed(name, tuple(between), reader, tuple(range(num)))
            break


def _ran(network: nn.Module, image: Any, ask: Ask) -> list[str]:
    """Names of the modules with parameters of their own, as they run."""
    ran: list[str] = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: ran.append(name), prepend=True)
        for name, module in network.named_modules()
        if any(parameter is not None for parameter in module._parameters.values())
    ]
    ask(network, image)
    for handle in handles:
        handle.remove()
    return ran


def _can_be_dropped(network: nn.Module, image: Any, ask: Ask, item: Narrowed, whole: Tensor) -> bool:
    """whole: what the network says with all channels."""
    num = len(item.kept)
    kept = torch.randperm(num, generator=torch.Generator().manual_seed(0))[: num // 2].sort().values
    with _zeros(network.get_submodule(item.reader), kept):
        wanted = _values(ask(network, image))
    half = Narrowed(item.writer, item.between, item.reader, tuple(kept.tolist()))
    try:
        with _without(network, half):
            found = _values(ask(network, image))
    except Exception:  # whatever a forward may say that counts on these channels
        return False
    effect = (whole - wanted).norm()
    return bool(effect > 0 and found.shape == wanted.shape and (found - wanted).norm() <= _ROUNDING * effect)


def _values(output: Any) -> Tensor:
    """All that a network says."""
    return torch.cat([leaf.flatten().double() for leaf in tree_leaves(output) if isinstance(leaf, Tensor)])


@contextmanager
def _zeros(reader: nn.Module, kept: Tensor) -> Iterator[None]:
    """In all channels that the layer reads but these."""

    def zero(layer: nn.Module, args: Any, kwargs: Any) -> tuple[Any, dict[str, Any]]:
        x = input_of(args, kwargs)
        return (spread(layer, some(layer, x, kept), kept, _inputs(layer)),), {}

    handle = reader.register_forward_pre_hook(zero, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _without(network: nn.Module, item: Narrowed) -> Iterator[None]:
    """With these channels alone."""
    layers = [network.get_submodule(name) for name in (item.writer, *item.between, item.reader)]
    narrower = [deepcopy(layer) for layer in layers]
    for layer, other in zip(layers, narrower, strict=True):
        replace(network, layer, other)
    try:
        narrow(network, [item])
        yield
    finally:
        for layer, other in zip(layers, narrower, strict=True):
            replace(network, other, layer)
