"""A budget in, a plan out: which layers stay dense, are factored alone or share a factor, and at which rank.

Every choice has an error (the change of the network's output, to second order; see `metric.py`) and a cost in
parameters and FLOPs. One price for each budget turns costs into errors; at given prices every option takes the rank
at which error and price together are least, or stays dense, and the prices at which the budgets just hold come by
bisection. Errors are those on images that did not shape the factors (`held_out.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from jointsvd.compression.budget import Budget, Means
from jointsvd.compression.held_out import held_out
from jointsvd.compression.layer_times import LayerTimes
from jointsvd.compression.options import Choice, Cost, Layer, Option, alone, cheapest, fits, total
from jointsvd.compression.sharing import merge
from jointsvd.compression.statistics import Statistics
from jointsvd.compression.untouched import matrix_layers
from jointsvd.compression.weighing import weighed
from jointsvd.network.cost import Positions, num_parameters, usage
from jointsvd.network.layers import unfold
from jointsvd.network.plan import Plan
from jointsvd.network.progress import bar
from jointsvd.network.random_state import random_state_kept


@dataclass(frozen=True)
class Wanted:
    """The layers that may be factored, what the whole network costs, and by which factors what is to fall: these costs,
    or those of the network before channels were dropped."""

    layers: list[Layer]
    cost: Cost
    factors: tuple[float | None, float | None]
    dense: Cost


@random_state_kept()
def plan_for_budget(
    model: nn.Module,
    statistics: Statistics,
    budget: Budget,
    *,
    times: LayerTimes | None = None,
    share: bool = Means.share,
    rank_multiple: int = Means.rank_multiple,
    dense: Cost | None = None,
) -> tuple[Plan, list[Choice]]:
    """The plan of least predicted error that keeps the budget, and what became of every layer.

    FLOPs are the whole network's, an image. times: of `measure_layer_times`, for a budget of time. share: whether
    layers may share factors. rank_multiple: ranks are multiples of it. dense: parameters, and FLOPs or milliseconds,
    of another network that is to become so many times smaller or faster, if not of `model`.

    Raises ValueError for a budget that no plan reaches, naming the smallest network there is, and for a budget of time
    without times.
    """
    means = Means(share=share, rank_multiple=rank_multiple)
    if budget.timed and times is None:
        raise ValueError("a budget of time needs times=, what measure_layer_times returns")
    task = wanted(model, budget, {n: statistics.positions[n] for n in statistics.inputs}, statistics.flops, times)
    task = replace(task, layers=weighed(task.layers, statistics), dense=dense or task.dense)
    _check_reached(task, means.rank_multiple)
    limits = limits_of(task)
    choices = _choices(task.layers, limits, means)
    if not fits(total(choice.cost for choice in choices), limits):
        raise ValueError("no plan keeps all budgets at once: relax one of them")
    settings: dict[str, Any] = {"method": "budget", "params": task.factors[0], "flops": budget.flops, "share": share}
    if times is not None:
        kept = task.cost[1] - total(layer.dense_cost for layer in task.layers)[1]
        predicted = kept + total(choice.cost for choice in choices)[1]
        milliseconds = dense[1] if dense else times.network
        settings |= {"faster": task.factors[1], "milliseconds": milliseconds, "predicted_milliseconds": predicted}
    settings |= {"rank_multiple": rank_multiple, "predicted_error": sum(choice.error for choice in choices)}
    return Plan(tuple(choice.group for choice in choices if choice.rank), settings), [c.bare() for c in choices]


def check_budget(
    model: nn.Module,
    image: Any,
    budget: Budget,
    *,
    times: LayerTimes | None = None,
    rank_multiple: int = Means.rank_multiple,
    ask: Callable[[nn.Module, Any], Any] = nn.Module.__call__,
    dense: Cost | None = None,
) -> None:
    """Raises ValueError as `plan_for_budget` does, without statistics; a budget of time is not looked at without times.

    image: (1, ...), on the model's device, which may be "meta". ask: runs the network on it. dense: as there.
    """
    means, task = Means(rank_multiple=rank_multiple), wanted(model, budget, *usage(model, image, ask), times)
    _check_reached(replace(task, dense=dense or task.dense), means.rank_multiple)


def wanted(
    model: nn.Module, budget: Budget, positions: Mapping[str, Positions], flops: int, times: LayerTimes | None
) -> Wanted:
    """positions: of the layers that run; flops: of the whole network."""
    layers, params = _layers(model, positions), budget.params_of(model)
    if times is None:
        sizes = num_parameters(model), flops
        return Wanted(layers, sizes, (params, budget.flops), sizes)
    if budget.flops is not None:
        raise ValueError("give flops or a budget of time with its times, not both")
    timed = []
    for layer in layers:
        dense, fixed, per_rank = times.layers[layer.name]
        timed.append(replace(layer, dense_run=dense, fixed_run=fixed, rank_run=per_rank))
    network = max(times.network, sum(layer.dense_run for layer in timed))
    cost = num_parameters(model), network
    return Wanted(timed, cost, (params, budget.faster_than(times.network)), cost)


def _layers(model: nn.Module, positions: Mapping[str, Positions]) -> list[Layer]:
    """Those of the layers that run which can be factored, with no metrics yet."""
    layers = []
    for name, module in matrix_layers(model, positions):
        weight: Tensor = module.weight
        W, (vertical, horizontal), none = unfold(weight.detach()), positions[name], torch.empty(0)
        sides = (type(module), *weight.shape[1:3]), (type(module), weight.shape[0], *weight.shape[3:])
        per_rank = 2 * len(W) * vertical + 2 * W.shape[1] * horizontal
        dense_run = 2 * W.numel() * horizontal
        layers.append(Layer(name, W, none, none, dense_run, 0.0, per_rank, *sides, shape=tuple(W.shape)))
    return layers


def _choices(layers: Sequence[Layer], limits: Cost, means: Means) -> list[Choice]:
    multiple = means.rank_multiple
    singles = [alone(layer) for layer in layers]
    options = [held_out(single) for single in bar(singles, "Trying ranks")]
    prices = find_prices(options, limits, multiple)
    if means.share:
        options = merge(singles, options, prices, multiple)
        prices = find_prices(options, limits, multiple)
    return _fill([cheapest(option, prices, multiple) for option in options], limits, multiple)


def limits_of(task: Wanted) -> Cost:
    """What the layers may cost for the network to keep its budgets."""

    def limit(axis: int) -> float:
        factor = task.factors[axis]
        return inf if factor is None else task.dense[axis] / factor - _kept(task)[axis]

    return limit(0), limit(1)


def _kept(task: Wanted) -> Cost:
    """What biases, norms and what cannot be factored cost."""
    dense = total(layer.dense_cost for layer in task.layers)
    return task.cost[0] - dense[0], task.cost[1] - dense[1]


def _check_reached(task: Wanted, multiple: int) -> None:
    """Raises ValueError if nothing keeps the budgets."""
    if not task.layers:
        raise ValueError("the network has no Conv2d or Linear that runs and can be factored")
    smallest = total(_smallest_cost(layer, multiple) for layer in task.layers)
    if not fits(smallest, limits_of(task)):
        factors = [cost / (least + kept) for cost, least, kept in zip(task.dense, smallest, _kept(task), strict=True)]
        raise ValueError(
            f"no plan reaches this budget: at rank {multiple} in all {len(task.layers)} layers that can be factored, "
            f"the network has {factors[0]:.4g} times fewer parameters, {factors[1]:.4g} times fewer FLOPs or "
            "milliseconds"
        )


def _smallest_cost(layer: Layer, multiple: int) -> Cost:
    """Of each kind by itself."""
    option = Option((layer,), "alone", torch.empty(min(layer.shape) + 1))
    choices = [Choice(option, 0), *([Choice(option, multiple)] if option.largest_rank(multiple) else [])]
    return min(choice.cost[0] for choice in choices), min(choice.cost[1] for choice in choices)


def find_prices(options: Sequence[Option], limits: Cost, multiple: int) -> Cost:
    """The lowest prices at which the cheapest choices fit: of one budget alone where the other then holds by itself,
    else a mixture at which both bind."""

    def cost(prices: Cost) -> Cost:
        return total(cheapest(option, prices, multiple).cost for option in options)

    def fitting(mixture: float) -> Cost:
        """Prices that share 1 - mixture : mixture between parameters and FLOPs, each in units of its limit."""
        unit = ((1 - mixture) / limits[0], mixture / limits[1])
        binding = (limits[0] if mixture < 1 else inf, limits[1] if mixture > 0 else inf)
        low, high = -40.0, 20.0  # powers of ten
        for _ in range(60):
            middle = (low + high) / 2
            enough = fits(cost((unit[0] * 10**middle, unit[1] * 10**middle)), binding)
            low, high = (low, middle) if enough else (middle, high)
        return unit[0] * 10**high, unit[1] * 10**high

    for mixture in (0.0, 1.0):
        if limits[int(mixture)] < inf and fits(cost(prices := fitting(mixture)), limits):
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
        if not fits((used[0] + more[0], used[1] + more[1]), limits):
            return 0.0
        errors = choice.option.errors
        saved = max(float(errors[choice.rank] - errors[choice.rank + multiple]), 0.0)
        share = max(cost / limit for cost, limit in zip(more, limits, strict=True))
        if not share:  # as where time alone counts, and more ranks take no more of it
            return inf if saved else 0.0
        return saved / share

    while choices:
        used = total(choice.cost for choice in choices)
        gains = list(map(gain, choices))
        best = gains.index(max(gains))
        if not gains[best]:
            break
        choices[best] = Choice(choices[best].option, choices[best].rank + multiple)
    return choices
