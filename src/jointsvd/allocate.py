"""A budget in, a plan out: which layers stay dense, are factored alone or share a factor, and at which rank.

Every choice has an error (the change of the network's output, to second order; see `weighted.py`) and a cost in
parameters and FLOPs. One price for each budget turns costs into errors; at given prices every option takes the rank
whose eigenvalues are all worth their price, or stays dense, and the prices at which the budgets just hold come by
bisection.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import inf
from typing import Any, Literal

import torch
from torch import Tensor, nn

from jointsvd.calibrate import Statistics
from jointsvd.cost import num_parameters
from jointsvd.layers import is_matrix, unfold
from jointsvd.plan import Group, Plan
from jointsvd.weighted import matrix_power, with_ridge

Kind = Literal["alone", "left", "right"]
Pooled = dict[Kind, dict[tuple[Any, ...], Tensor]]
Cost = tuple[float, float]  # parameters, FLOPs of an image; prices and limits come in the same pairs


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer as the planner sees it: its matrix W (rows, cols), the metrics C (rows, rows) and G (cols, cols) of its
    error, the FLOPs of a column of U and of a row of V, and what another layer must agree on to share U (left) or V
    (right)."""

    name: str
    W: Tensor
    C: Tensor
    G: Tensor
    u_flops: float
    v_flops: float
    left_side: tuple[Any, ...]
    right_side: tuple[Any, ...]

    @property
    def dense_cost(self) -> Cost:
        return self.W.numel(), len(self.W) * self.v_flops


@dataclass(frozen=True, eq=False)
class Option:
    """A way to factor some layers; the error left behind rank r is the sum of the (falling) eigenvalues from r on."""

    layers: tuple[Layer, ...]
    kind: Kind
    eigenvalues: Tensor = field(repr=False)
    tail: float = 0.0  # what the eigenvalues leave out

    @property
    def rank_cost(self) -> Cost:
        """Of one more rank."""
        rows, cols = ([layer.W.shape[side] for layer in self.layers] for side in (0, 1))
        params = (rows[0] if self.kind == "left" else sum(rows)) + (cols[0] if self.kind == "right" else sum(cols))
        return params, sum(layer.u_flops + layer.v_flops for layer in self.layers)

    @property
    def dense_cost(self) -> Cost:
        return _sum(layer.dense_cost for layer in self.layers)

    def largest_rank(self, multiple: int) -> int:
        """The largest that saves parameters; 0 if none does."""
        rank = min(int((self.dense_cost[0] - 1) // self.rank_cost[0]), len(self.eigenvalues))
        return rank - rank % multiple


@dataclass(frozen=True)
class Choice:
    """What becomes of the layers of an option. rank 0: they stay dense."""

    option: Option
    rank: int

    @property
    def cost(self) -> Cost:
        params, flops = self.option.rank_cost
        return (params * self.rank, flops * self.rank) if self.rank else self.option.dense_cost

    @property
    def error(self) -> float:
        """Predicted; what is reached when layers share U is a little more."""
        return float(self.option.eigenvalues[self.rank :].sum()) + self.option.tail if self.rank else 0.0

    @property
    def group(self) -> Group:
        names = tuple(layer.name for layer in self.option.layers)
        return Group(names, self.rank, 0) if self.option.kind == "left" else Group(names, 0, self.rank)

    def price(self, prices: Cost) -> float:
        """Error and cost in one."""
        return self.error + _dot(self.cost, prices)


def plan_for_budget(
    model: nn.Module,
    statistics: Statistics,
    *,
    params: float | None = None,
    flops: float | None = None,
    share: bool = True,
    rank_multiple: int = 1,
) -> tuple[Plan, list[Choice]]:
    """The plan of least predicted error with `params` times fewer parameters and `flops` times fewer FLOPs.

    FLOPs are those of convs and linear layers. Both budgets hold if both are given. share: whether layers may share
    factors. rank_multiple: ranks are multiples of it. Returns the plan and what became of every layer.

    Raises ValueError for no budget, one below 1, or one that no plan reaches, naming the smallest network there is.
    """
    if (params is None and flops is None) or not all(budget is None or budget >= 1 for budget in (params, flops)):
        raise ValueError(f"give params=, flops= or both, as factors of 1 or more; got {params}, {flops}")
    if rank_multiple < 1:
        raise ValueError(f"rank_multiple must be 1 or more, got {rank_multiple}")
    layers = _layers(model, statistics)
    dense = _sum(layer.dense_cost for layer in layers)
    kept = num_parameters(model) - dense[0]  # biases, norms and what cannot be factored
    limits = ((dense[0] + kept) / params - kept if params else inf, dense[1] / flops if flops else inf)

    options = [Option((layer,), "alone", _eigenvalues(_alone(layer))) for layer in layers]
    _check_reachable(options, limits, rank_multiple, kept)
    prices = _find_prices(options, limits, rank_multiple)
    if share:
        options = _merge(options, prices, rank_multiple)
        prices = _find_prices(options, limits, rank_multiple)
    choices = _fill([_cheapest(option, prices, rank_multiple) for option in options], limits, rank_multiple)
    settings: dict[str, Any] = {"method": "budget", "params": params, "flops": flops, "share": share}
    settings |= {"rank_multiple": rank_multiple, "predicted_error": sum(choice.error for choice in choices)}
    return Plan(tuple(choice.group for choice in choices if choice.rank), settings), choices


def _layers(model: nn.Module, statistics: Statistics) -> list[Layer]:
    """Those that ran on the calibration data and do not share their weight with another module."""
    owners = [id(weight) for module in model.modules() for weight in module._parameters.values()]
    layers = []
    for name, module in model.named_modules():
        if not is_matrix(module) or name not in statistics.inputs or owners.count(id(module.weight)) > 1:
            continue
        weight: Tensor = module.weight
        W = unfold(weight.detach()).double().cpu()
        vertical, horizontal = statistics.positions[name]
        sides = (type(module), *weight.shape[1:3]), (type(module), weight.shape[0], *weight.shape[3:])
        C, G = (with_ridge(moment.cpu()) for moment in statistics.metric(name, W.shape[1]))
        layers.append(Layer(name, W, C, G, 2 * len(W) * vertical, 2 * W.shape[1] * horizontal, *sides))
    return layers


def _cheapest(option: Option, prices: Cost, multiple: int) -> Choice:
    """Dense, or as many ranks as are worth their price."""
    dense, largest = Choice(option, 0), option.largest_rank(multiple)
    if not largest:
        return dense
    worth = option.eigenvalues[:largest].reshape(-1, multiple).mean(1) > _dot(option.rank_cost, prices)
    factored = Choice(option, max(int(worth.sum()), 1) * multiple)
    return factored if factored.price(prices) < dense.price(prices) else dense


def _check_reachable(options: Sequence[Option], limits: Cost, multiple: int, kept: float) -> None:
    """Raises ValueError if a limit cannot be met at all."""
    smallest = [Choice(option, multiple if option.largest_rank(multiple) else 0).cost for option in options]
    params, flops = _sum(smallest)
    if params > limits[0] or flops > limits[1]:
        dense = _sum(option.dense_cost for option in options)
        raise ValueError(
            f"no plan reaches this budget: at rank {multiple} everywhere the network has {dense[1] / flops:.4g} times "
            f"fewer FLOPs and {(dense[0] + kept) / (params + kept):.4g} times fewer parameters"
        )


def _find_prices(options: Sequence[Option], limits: Cost, multiple: int) -> Cost:
    """The lowest prices at which the cheapest choices fit: of one budget alone where the other then holds by itself,
    else a mixture at which both bind."""

    def cost(prices: Cost) -> Cost:
        return _sum(_cheapest(option, prices, multiple).cost for option in options)

    def fitting(mixture: float) -> Cost:
        """Prices that share 1 - mixture : mixture between parameters and FLOPs, each in units of its limit."""
        unit = ((1 - mixture) / limits[0], mixture / limits[1])
        binding = (limits[0] if mixture < 1 else inf, limits[1] if mixture > 0 else inf)
        low, high = -40.0, 20.0  # powers of ten
        for _ in range(60):
            middle = (low + high) / 2
            fits = _fits(cost((unit[0] * 10**middle, unit[1] * 10**middle)), binding)
            low, high = (low, middle) if fits else (middle, high)
        return unit[0] * 10**high, unit[1] * 10**high

    for mixture in (0.0, 1.0):
        if limits[int(mixture)] < inf and _fits(cost(prices := fitting(mixture)), limits):
            return prices
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        used = cost(fitting(middle))
        params_bind = used[0] / limits[0] > used[1] / limits[1]  # FLOPs cost too much in this mixture
        low, high = (low, middle) if params_bind else (middle, high)
    return fitting((low + high) / 2)


def _fill(choices: Sequence[Choice], limits: Cost, multiple: int) -> list[Choice]:
    """Spend what is left of the budgets on the ranks that are worth most for their cost."""
    choices = list(choices)

    def gain(choice: Choice) -> float:
        """Error saved by the next ranks of a choice, for their share of the budgets; 0 if they do not fit."""
        if not choice.rank or choice.rank + multiple > choice.option.largest_rank(multiple):
            return 0.0
        more = tuple(multiple * cost for cost in choice.option.rank_cost)
        if not _fits((used[0] + more[0], used[1] + more[1]), limits):
            return 0.0
        saved = float(choice.option.eigenvalues[choice.rank : choice.rank + multiple].sum())
        return saved / max(cost / limit for cost, limit in zip(more, limits, strict=True))

    while choices:
        used = _sum(choice.cost for choice in choices)
        gains = list(map(gain, choices))
        best = gains.index(max(gains))
        if not gains[best]:
            break
        choices[best] = Choice(choices[best].option, choices[best].rank + multiple)
    return choices


def _merge(options: Sequence[Option], prices: Cost, multiple: int) -> list[Option]:
    """Join options, two at a time and the most profitable pair first, as long as sharing pays at these prices.

    While searching, spectra are those of each layer's leading directions; of the options returned they are exact.
    """
    ranks = {option.layers[0].name: _cheapest(option, prices, multiple).rank for option in options}
    layers = [option.layers[0] for option in options]
    pooled = _pooled_roots(layers)
    sketches: dict[Kind, dict[str, tuple[Tensor, float]]] = {
        kind: {
            layer.name: _leading(_gram(layer, kind, pooled), ranks[layer.name])
            for layer in layers
            if getattr(layer, f"{kind}_side") in pooled[kind]
        }
        for kind in pooled
    }

    def join(one: Option, other: Option) -> tuple[float, Option]:
        """What the best way to share between two options saves, and that way."""
        separate = sum(_cheapest(option, prices, multiple).price(prices) for option in (one, other))
        best = (0.0, one)
        for kind in sketches:
            if _may_join(one, other, kind):
                choice = _cheapest(_sketched(one.layers + other.layers, kind, sketches[kind]), prices, multiple)
                gain = separate - choice.price(prices)
                best = (gain, choice.option) if choice.rank and gain > best[0] else best
        return best

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
    return [_exact(option, pooled) for option in current]


def _may_join(one: Option, other: Option, kind: Kind) -> bool:
    """Whether all layers agree on the side to share, and what is shared already is the same side."""
    sides = {layer.left_side if kind == "left" else layer.right_side for layer in one.layers + other.layers}
    return len(sides) == 1 and {one.kind, other.kind} <= {"alone", kind}


def _sketched(layers: tuple[Layer, ...], kind: Kind, sketches: Mapping[str, tuple[Tensor, float]]) -> Option:
    rows = torch.cat([sketches[layer.name][0] for layer in layers])
    gram = rows @ rows.T if len(rows) < rows.shape[1] else rows.T @ rows
    return Option(layers, kind, _eigenvalues(gram), sum(sketches[layer.name][1] for layer in layers))


def _exact(option: Option, pooled: Pooled) -> Option:
    if option.kind == "alone":
        return option
    grams = [_gram(layer, option.kind, pooled) for layer in option.layers]
    return Option(option.layers, option.kind, _eigenvalues(torch.stack(grams).sum(0)))


def _leading(gram: Tensor, rank: int) -> tuple[Tensor, float]:
    """Rows whose Gram matrix is the leading part of `gram`, well beyond `rank`, and the energy of the rest."""
    eigenvalues, Q = torch.linalg.eigh(gram)
    eigenvalues = eigenvalues.clamp_min(0)
    keep = min(2 * rank + 32, len(gram))
    return (Q[:, -keep:] * eigenvalues[-keep:].sqrt()).T, float(eigenvalues[:-keep].sum())


def _alone(layer: Layer) -> Tensor:
    """The Gram matrix of ``C^1/2 W G^1/2``; its eigenvalues are the errors that ranks of the layer alone take away."""
    half = matrix_power(layer.C, 0.5) @ layer.W @ matrix_power(layer.G, 0.5)
    return half.T @ half if len(half) > half.shape[1] else half @ half.T


def _gram(layer: Layer, kind: Kind, pooled: Pooled) -> Tensor:
    """The same for a layer that shares U (left) or V (right), had it the metric that is pooled for the shared side; the
    eigenvalues of a sum are those of the layers that share."""
    if kind == "left":
        root = pooled[kind][layer.left_side]
        return root @ layer.W @ layer.G @ layer.W.T @ root
    root = pooled[kind][layer.right_side]
    return root @ layer.W.T @ layer.C @ layer.W @ root


def _pooled_roots(layers: Sequence[Layer]) -> Pooled:
    """For each side that several layers have in common, the square root of the mean of their metrics there."""
    found: Pooled = {"left": {}, "right": {}}
    for kind, key, metric in (("left", "left_side", "C"), ("right", "right_side", "G")):
        sides: dict[tuple[Any, ...], list[Tensor]] = {}
        for layer in layers:
            sides.setdefault(getattr(layer, key), []).append(getattr(layer, metric))
        found[kind] = {  # type: ignore[index]
            side: matrix_power(torch.stack(Ms).mean(0), 0.5) for side, Ms in sides.items() if len(Ms) > 1
        }
    return found


def _eigenvalues(gram: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(gram).flip(0).clamp_min(0)


def _sum(costs: Iterable[Cost]) -> Cost:
    costs = list(costs)
    return sum(cost[0] for cost in costs), sum(cost[1] for cost in costs)


def _dot(cost: Cost, prices: Cost) -> float:
    return cost[0] * prices[0] + cost[1] * prices[1]


def _fits(cost: Cost, limits: Cost) -> bool:
    return cost[0] <= limits[0] and cost[1] <= limits[1]
