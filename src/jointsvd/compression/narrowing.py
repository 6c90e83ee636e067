"""Channels that go where this pays: between two layers that are then factored, a half or a quarter is kept.

The reader of the channels is fitted to those that stay. What that costs is an error like that of factors, on images
that did not shape it; what it saves is told by the same prices, of parameters and of FLOPs or milliseconds, at which
the planner chooses ranks. So both layers are taken with fewer channels where error and price of all together are less.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from jointsvd.compression.allocation import Wanted, find_prices, limits_of, wanted
from jointsvd.compression.budget import Budget, Means
from jointsvd.compression.held_out import held_out
from jointsvd.compression.layer_times import LayerTimes
from jointsvd.compression.options import Cost, Layer, Option, alone, cheapest
from jointsvd.compression.statistics import Statistics
from jointsvd.compression.weighing import weighed
from jointsvd.decomposition.channels import fitted, left_out, ordered, rows_of
from jointsvd.decomposition.metric import times as weighed_times
from jointsvd.decomposition.narrow import dense_moment
from jointsvd.network.copying import copied
from jointsvd.network.layers import MatrixLayer, fold, unfold
from jointsvd.network.narrowing import narrow
from jointsvd.network.plan import Narrowed
from jointsvd.network.progress import bar
from jointsvd.network.surgery import Metrics

SHARES = (2, 4)  # of how many channels one is kept
_MULTIPLE = 8  # channels that are kept are a multiple of it
_ROUNDS = 2  # of prices and what is chosen at them


@dataclass(frozen=True)
class _Way:
    """Two layers with fewer channels between them. error: of the channels that go."""

    item: Narrowed
    options: tuple[Option, Option]
    error: float

    def price(self, prices: Cost, multiple: int) -> float:
        return self.error + sum(cheapest(option, prices, multiple).price(prices) for option in self.options)


def narrower(model: nn.Module, items: Sequence[Narrowed], share: int) -> nn.Module:
    """A network with the first channels of all, one in `share`: as large and as fast as with any others."""
    return narrow(copied(model), [replace(item, kept=tuple(range(_num(item, share)))) for item in items])


def plan_channels(
    model: nn.Module,
    statistics: Statistics,
    budget: Budget,
    items: Sequence[Narrowed],
    times: Mapping[int, LayerTimes],
    means: Means,
) -> list[Narrowed]:
    """Which channels stay, where some are to go. items: of `inner_channels`. times: of the dense network (1) and of
    `narrower` ones, by their share; nothing where time does not count."""

    positions = {name: statistics.positions[name] for name in statistics.inputs}

    def seen(network: nn.Module, share: int) -> Wanted:
        return wanted(network, budget, positions, statistics.flops, times.get(share))

    task = seen(model, 1)
    dense = {layer.name: layer for layer in weighed(task.layers, statistics)}
    options = {name: held_out(alone(layer)) for name, layer in dense.items()}
    costs = {
        share: {layer.name: layer for layer in seen(narrower(model, items, share), share).layers} for share in SHARES
    }
    ways = [way for item in bar(items, "Trying fewer channels") for way in _ways(item, dense, costs)]
    return [way.item for way in _chosen(options, ways, limits_of(task), means.rank_multiple)]


def _chosen(options: Mapping[str, Option], ways: Sequence[_Way], limits: Cost, multiple: int) -> list[_Way]:
    """Of the ways, those that pay, one for each place; options: of the layers as they are, by name. What is chosen
    changes the prices at which it is."""
    chosen: dict[str, _Way] = {}
    for _ in range(_ROUNDS):
        now = dict(options) | {o.layers[0].name: o for way in chosen.values() for o in way.options}
        prices, chosen, least = find_prices(list(now.values()), limits, multiple), {}, dict[str, float]()
        for way in ways:
            price, place = way.price(prices, multiple), way.item.reader
            as_it_is = [cheapest(options[name], prices, multiple) for name in (way.item.writer, way.item.reader)]
            if price < least.get(place, sum(choice.price(prices) for choice in as_it_is)):
                chosen[place], least[place] = way, price
    return list(chosen.values())


def _num(item: Narrowed, share: int) -> int:
    """How many channels are kept of all."""
    return max(len(item.kept) // share // _MULTIPLE, 1) * _MULTIPLE


def _ways(item: Narrowed, dense: Mapping[str, Layer], costs: Mapping[int, Mapping[str, Layer]]) -> list[_Way]:
    """None for layers that changed nothing, and for those of so many inputs that their moments are spanned by few."""
    if not {item.writer, item.reader} <= dense.keys():
        return []
    writer, reader, num = dense[item.writer], dense[item.reader], len(item.kept)
    if any(tuple(layer.W.shape) != layer.shape or not layer.W.any() for layer in (writer, reader)):
        return []
    height, most = len(reader.W) // num, _num(item, min(SHARES))
    order = ordered(reader.W, reader.C, reader.G, height, min(most, num - 1))
    return [_way(item, sorted(order[: _num(item, share)]), writer, reader, costs[share]) for share in SHARES]


def _way(item: Narrowed, kept: list[int], writer: Layer, reader: Layer, costs: Mapping[str, Layer]) -> _Way:
    channels, num = torch.tensor(kept), len(item.kept)
    rows = rows_of(channels, num, len(reader.W) // num)
    columns = rows_of(channels, num, writer.W.shape[1] // num)
    A = fitted(reader.W, reader.C, rows)
    # gradients grow with what channels take over
    more = float(_met(A, reader.G) / (_met(reader.W[rows], reader.G) or 1.0))
    narrow_writer = replace(
        _written(writer, channels, columns, more, costs[writer.name]),
        folds=[partial(_written_in_fold, fold, channels, columns, more, costs[writer.name]) for fold in writer.folds],
    )
    narrow_reader = replace(
        _read(reader, rows, costs[reader.name]),
        folds=[partial(_read_in_fold, fold, rows, costs[reader.name]) for fold in reader.folds],
    )
    looks = [fold() for fold in reader.folds] or [(reader, reader.C, reader.G)]
    errors = [left_out(seen.W, C, G, rows, fitted(seen.W, seen.C, rows)) for seen, C, G in looks]
    options = held_out(alone(narrow_writer)), held_out(alone(narrow_reader))
    return _Way(replace(item, kept=tuple(kept)), options, max(sum(errors) / len(errors), 0.0))


def _met(W: Tensor, G: Tensor) -> Tensor:
    """What comes back through W, in all."""
    return (W * weighed_times(G, W.T).T).sum()


def _written(layer: Layer, channels: Tensor, columns: Tensor, more: float, cost: Layer) -> Layer:
    """With some outputs alone."""
    return replace(cost, W=layer.W[:, columns], C=layer.C, G=layer.G[channels][:, channels] * more)


def _written_in_fold(
    fold: Callable[[], tuple[Layer, Tensor, Tensor]], channels: Tensor, columns: Tensor, more: float, cost: Layer
) -> tuple[Layer, Tensor, Tensor]:
    layer, C, G = fold()
    return _written(layer, channels, columns, more, cost), C, G[channels][:, channels] * more


def _read(layer: Layer, rows: Tensor, cost: Layer) -> Layer:
    """With some inputs alone, fitted to them."""
    return replace(cost, W=fitted(layer.W, layer.C, rows), C=layer.C[rows][:, rows], G=layer.G)


def _read_in_fold(
    fold: Callable[[], tuple[Layer, Tensor, Tensor]], rows: Tensor, cost: Layer
) -> tuple[Layer, Tensor, Tensor]:
    layer, C, G = fold()
    return _read(layer, rows, cost), C[rows][:, rows], G


@torch.no_grad()
def narrowed_network(model: nn.Module, narrowed: Sequence[Narrowed], statistics: Metrics) -> nn.Module:
    """A copy of `model` with these channels alone, each reader fitted to those that stay."""
    network, written = narrow(copied(model), narrowed), {item.writer: item.kept for item in narrowed}
    for item in narrowed:
        reader, target = (cast(MatrixLayer, which.get_submodule(item.reader)) for which in (model, network))
        C, W = dense_moment(statistics.metric(item.reader)[0]), unfold(reader.weight.double())
        num_out, num_in = reader.weight.shape[:2]
        A = fitted(W, C, rows_of(torch.tensor(item.kept, device=W.device), num_in, len(W) // num_in))
        if item.reader in written:
            some = torch.tensor(written[item.reader], device=W.device)
            A = A[:, rows_of(some, num_out, W.shape[1] // num_out)]
        target.weight.copy_(fold(A.to(target.weight.dtype), target.weight.shape))
    return network
