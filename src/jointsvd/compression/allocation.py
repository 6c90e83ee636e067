"""A budget in, a plan out: which layers stay dense, are factored alone or share a factor, and at which rank.

Every choice has an error (the change of the network's output, to second order; see `weighted.py`) and a cost in
parameters and FLOPs. One price for each budget turns costs into errors; at given prices every option takes the rank
whose eigenvalues are all worth their price, or stays dense, and the prices at which the budgets just hold come by
bisection.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from jointsvd.compression.calibration import Statistics
from jointsvd.compression.layer_times import LayerTimes
from jointsvd.compression.options import Choice, Cost, Layer, Option, alone, cheapest, fits, total
from jointsvd.compression.sharing import merge
from jointsvd.decomposition.weighted import with_ridge
from jointsvd.network.cost import Positions, num_parameters, usage
from jointsvd.network.layers import is_matrix, unfold
from jointsvd.network.plan import Plan


def plan_for_budget(
    model: nn.Module,
    statistics: Statistics,
    *,
    params: float | None = None,
    flops: float | None = None,
    faster: float | None = None,
    times: LayerTimes | None = None,
    share: bool = True,
    rank_multiple: int = 1,
) -> tuple[Plan, list[Choice]]:
    """The plan of least predicted error with `params` times fewer parameters, and `flops` times fewer FLOPs or, by the
    measured `times`, `faster` times as fast.

    FLOPs are the whole network's, an image. All budgets given hold. share: whether layers may share factors.
    rank_multiple: ranks are multiples of it. Returns the plan and what became of every layer.

    Raises ValueError for no budget, one below 1, or one that no plan reaches, naming the smallest network there is.
    """
    positions = {name: statistics.positions[name] for name in statistics.inputs}
    layers, run, factor = _running(_layers(model, positions), statistics.flops, flops, faster, times)
    metrics = {layer.name: statistics.metric(layer.name) for layer in layers}
    dead = {name for name, moments in metrics.items() if not all(moment.any() for moment in moments)}
    dead = dead if len(dead) < len(layers) else set()  # then nothing tells them apart
    layers = [_weighed(layer, *metrics[layer.name], dead=layer.name in dead) for layer in layers]
    limits = _limits(model, layers, run, params, factor, rank_multiple)
    options = [alone(layer) for layer in layers]
    prices = _find_prices(options, limits, rank_multiple)
    if share:
        options = merge(options, prices, rank_multiple)
        prices = _find_prices(options, limits, rank_multiple)
    choices = _fill([cheapest(option, prices, rank_multiple) for option in options], limits, rank_multiple)
    if not fits(total(choice.cost for choice in choices), limits):
        raise ValueError("no plan keeps all budgets at once: relax one of them")
    settings: dict[str, Any] = {"method": "budget", "params": params, "flops": flops, "share": share}
    if times is not None:
        kept = run - total(layer.dense_cost for layer in layers)[1]
        predicted = kept + total(choice.cost for choice in choices)[1]
        settings |= {"faster": faster, "milliseconds": times.network, "predicted_milliseconds": predicted}
    settings |= {"rank_multiple": rank_multiple, "predicted_error": sum(choice.error for choice in choices)}
    return Plan(tuple(choice.group for choice in choices if choice.rank), settings), choices


def check_budget(
    model: nn.Module,
    image: Tensor,
    *,
    params: float | None = None,
    flops: float | None = None,
    faster: float | None = None,
    times: LayerTimes | None = None,
    rank_multiple: int = 1,
) -> None:
    """Raises ValueError as `plan_for_budget` does, without statistics.

    image: (1, ...), on the model's device, which may be "meta".
    """
    positions, all_flops = usage(model, image)
    layers, run, factor = _running(_layers(model, positions), all_flops, flops, faster, times)
    _limits(model, layers, run, params, factor, rank_multiple)


def _running(
    layers: list[Layer], all_flops: int, flops: float | None, faster: float | None, times: LayerTimes | None
) -> tuple[list[Layer], float, float | None]:
    """The layers with what it costs to run them, the whole network's cost, and by which factor it is to fall."""
    if times is None:
        if faster is not None:
            raise ValueError("faster= needs times=, what measure_layer_times returns")
        return layers, all_flops, flops
    if flops is not None:
        raise ValueError("give flops= or a budget of time, not both")
    timed = []
    for layer in layers:
        dense, fixed, per_rank = times.layers[layer.name]
        timed.append(replace(layer, dense_run=dense, fixed_run=fixed, rank_run=per_rank))
    return timed, max(times.network, sum(layer.dense_run for layer in timed)), faster


def _layers(model: nn.Module, positions: Mapping[str, Positions]) -> list[Layer]:
    """Those that run and do not share their weight with another module, with no metrics yet."""
    owners = [id(weight) for module in model.modules() for weight in module._parameters.values()]
    layers = []
    for name, module in model.named_modules():
        if not is_matrix(module) or name not in positions or owners.count(id(module.weight)) > 1:
            continue
        weight: Tensor = module.weight
        W, (vertical, horizontal), none = unfold(weight.detach()), positions[name], torch.empty(0)
        sides = (type(module), *weight.shape[1:3]), (type(module), weight.shape[0], *weight.shape[3:])
        per_rank = 2 * len(W) * vertical + 2 * W.shape[1] * horizontal
        layers.append(Layer(name, W, none, none, 2 * W.numel() * horizontal, 0.0, per_rank, *sides))
    return layers


def _weighed(layer: Layer, C: Tensor, G: Tensor, *, dead: bool) -> Layer:
    """The layer with its metrics, their scale in W; all in float64 on the CPU. dead: changing it changes nothing."""
    C, G = (with_ridge(moment.double().cpu()) for moment in (C, G))
    scales = C.diagonal().mean(), G.diagonal().mean()
    W = layer.W.double().cpu() * (scales[0] * scales[1]).sqrt() * (not dead)
    return replace(layer, W=W, C=C / scales[0], G=G / scales[1])


def _limits(
    model: nn.Module, layers: Sequence[Layer], run: float, params: float | None, factor: float | None, multiple: int
) -> Cost:
    """What `layers` may cost for the network to keep its budgets. Raises ValueError if nothing keeps them."""
    if (params is None and factor is None) or not all(budget is None or budget >= 1 for budget in (params, factor)):
        raise ValueError(f"give budgets as factors of 1 or more; got params={params}, FLOPs or time {factor}")
    if multiple < 1:
        raise ValueError(f"rank_multiple must be 1 or more, got {multiple}")
    if not layers:
        raise ValueError("the network has no Conv2d or Linear that runs and can be factored")
    dense = total(layer.dense_cost for layer in layers)
    smallest = total(_smallest_cost(layer, multiple) for layer in layers)
    kept = (num_parameters(model) - dense[0], run - dense[1])  # biases, norms and what cannot be factored

    def limit(axis: int, budget: float | None) -> float:
        return (dense[axis] + kept[axis]) / budget - kept[axis] if budget else inf

    limits = limit(0, params), limit(1, factor)
    if not fits(smallest, limits):
        factors = [(cost + rest) / (least + rest) for cost, least, rest in zip(dense, smallest, kept, strict=True)]
        raise ValueError(
            f"no plan reaches this budget: at rank {multiple} in all {len(layers)} layers that can be factored, the "
            f"network has {factors[0]:.4g} times fewer parameters, {factors[1]:.4g} times fewer FLOPs or milliseconds"
        )
    return limits


def _smallest_cost(layer: Layer, multiple: int) -> Cost:
    """Of each kind by itself."""
    option = Option((layer,), "alone", torch.empty(min(layer.W.shape)))
    choices = [Choice(option, 0), *([Choice(option, multiple)] if option.largest_rank(multiple) else [])]
    return min(choice.cost[0] for choice in choices), min(choice.cost[1] for choice in choices)


def _find_prices(options: Sequence[Option], limits: Cost, multiple: int) -> Cost:
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
        saved = float(choice.option.eigenvalues[choice.rank : choice.rank + multiple].sum())
        return saved / max(cost / limit for cost, limit in zip(more, limits, strict=True))

    while choices:
        used = total(choice.cost for choice in choices)
        gains = list(map(gain, choices))
        best = gains.index(max(gains))
        if not gains[best]:
            break
        choices[best] = Choice(choices[best].option, choices[best].rank + multiple)
    return choices
