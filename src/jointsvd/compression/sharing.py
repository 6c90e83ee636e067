"""Which layers share a factor: options joined while it pays."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from jointsvd.compression.held_out import held_out
from jointsvd.compression.options import Cost, Kind, Layer, Option, cheapest, errors_of, gram, half
from jointsvd.decomposition.metric import objective, root, times
from jointsvd.decomposition.subspaces import improved_subspace
from jointsvd.decomposition.weighted import weighted_ljsvd, weighted_rjsvd

Pooled = dict[Kind, dict[tuple[Any, ...], Tensor]]  # by the side that layers have in common
Sketches = dict[Kind, dict[str, tuple[Tensor, float]]]  # by the layer's name; what they leave out


def merge(options: Sequence[Option], tried: Sequence[Option], prices: Cost, multiple: int) -> list[Option]:
    """Join options, two at a time and the most profitable pair first, as long as sharing pays at these prices. tried:
    the same with `held_out` errors.

    While searching, errors are those on the images that shape the factors, of each layer's leading directions under the
    mean metric. What is found is then solved under each layer's own, tried on other images, and kept if it still pays.
    """
    separate = {option.layers[0].name: option for option in tried}
    pooled = _pooled_roots([option.layers[0] for option in options])
    sketches = _sketches(options, pooled, prices, multiple)

    def join(one: Option, other: Option) -> tuple[float, Option]:
        """What the best way to share between two options saves, and that way."""
        apart = sum(cheapest(option, prices, multiple).price(prices) for option in (one, other))
        best = (0.0, one)
        for kind in sketches:
            if _may_join(one, other, kind):
                choice = cheapest(_sketched(one.layers + other.layers, kind, sketches[kind]), prices, multiple)
                gain = apart - choice.price(prices)
                best = (gain, choice.option) if choice.rank and gain > best[0] else best
        return best

    def pays(joint: Option, apart: float) -> bool:
        return cheapest(joint, prices, multiple).price(prices) <= apart

    found: list[Option] = []
    for option in _joined(options, join):
        parts = [separate[layer.name] for layer in option.layers]
        if option.kind == "alone":
            found += parts
            continue
        apart = sum(cheapest(part, prices, multiple).price(prices) for part in parts)
        joint = _solved(_exact(option, pooled), prices, multiple)
        if pays(joint, apart):  # on the images that shaped it, where errors are smaller than on others
            joint = held_out(joint)
        found += [joint] if pays(joint, apart) else parts
    return found


def _joined(options: Sequence[Option], join: Callable[[Option, Option], tuple[float, Option]]) -> list[Option]:
    """The options after joining, again and again, the two that gain most."""
    current = list(options)
    gains = {pair: join(*pair) for pair in combinations(current, 2)}
    while gains:
        pair = max(gains, key=lambda pair: gains[pair][0])
        gain, joint = gains[pair]
        if gain <= 0:
            break
        current = [option for option in current if option not in pair]
        gains = {key: value for key, value in gains.items() if not set(key) & set(pair)}
        gains |= {(option, joint): join(option, joint) for option in current}
        current.append(joint)
    return current


def _sketches(options: Sequence[Option], pooled: Pooled, prices: Cost, multiple: int) -> Sketches:
    """The leading directions of every layer that has a side in common with another."""
    ranks = {option.layers[0].name: cheapest(option, prices, multiple).rank for option in options}
    layers = [option.layers[0] for option in options]
    return {
        kind: {
            layer.name: _leading(*half(layer, kind, R), ranks[layer.name])
            for layer in layers
            if (R := pooled[kind].get(_side(layer, kind))) is not None
        }
        for kind in pooled
    }


def _may_join(one: Option, other: Option, kind: Kind) -> bool:
    """Whether all layers agree on the side to share, and what is shared already is the same side."""
    sides = {_side(layer, kind) for layer in one.layers + other.layers}
    return len(sides) == 1 and {one.kind, other.kind} <= {"alone", kind}


def _sketched(layers: tuple[Layer, ...], kind: Kind, sketches: Mapping[str, tuple[Tensor, float]]) -> Option:
    rows = torch.cat([sketches[layer.name][0] for layer in layers])
    gram = rows @ rows.T if len(rows) < rows.shape[1] else rows.T @ rows
    return Option(layers, kind, errors_of(gram), sum(sketches[layer.name][1] for layer in layers))


def _exact(option: Option, pooled: Pooled) -> Option:
    R = pooled[option.kind][_side(option.layers[0], option.kind)]
    grams = [gram(layer, option.kind, R) for layer in option.layers]
    return Option(option.layers, option.kind, errors_of(torch.stack(grams).sum(0)))


def _solved(option: Option, prices: Cost, multiple: int) -> Option:
    """The option with what is missed at its best rank, beyond its errors, as its tail."""
    choice = cheapest(option, prices, multiple)
    if not choice.rank:
        return option
    Ws, Cs, Gs = zip(*((layer.W, layer.C, layer.G) for layer in option.layers), strict=True)
    if option.kind == "left":
        U, Vs = weighted_ljsvd(Ws, Cs, Gs, choice.rank)
        products = [U @ V for V in Vs]
    else:
        Us, V = weighted_rjsvd(Ws, Cs, Gs, choice.rank)
        products = [U @ V for U in Us]
    return replace(option, tail=option.tail + objective(Ws, Cs, Gs, products) - choice.error)


def _leading(A: Tensor, M: Tensor, rank: int) -> tuple[Tensor, float]:
    """Rows whose Gram matrix is about the leading part, well beyond `rank`, of that of `half`; what the rest holds."""
    size = A.shape[1]
    start = torch.randn(size, min(2 * rank + 32, size), dtype=A.dtype, generator=torch.Generator().manual_seed(0))
    Q = improved_subspace(lambda X: A.T @ times(M, A @ X), torch.linalg.qr(start).Q)
    AQ = A @ Q
    energies = (AQ * times(M, AQ)).sum(0)
    rest = (A * times(M, A)).sum() - energies.sum()
    return (Q * energies.sqrt()).T, max(float(rest), 0.0)


def _side(layer: Layer, kind: Kind) -> tuple[Any, ...]:
    return layer.left_side if kind == "left" else layer.right_side


def _pooled_roots(layers: Sequence[Layer]) -> Pooled:
    """For each side that several layers have in common, the square root of the mean of their metrics there."""
    found: Pooled = {"left": {}, "right": {}}
    for kind in found:
        sides: dict[tuple[Any, ...], list[Tensor]] = {}
        for layer in layers:
            sides.setdefault(_side(layer, kind), []).append(layer.C if kind == "left" else layer.G)
        found[kind] = {side: root(torch.stack(Ms).mean(0)) for side, Ms in sides.items() if len(Ms) > 1}
    return found
