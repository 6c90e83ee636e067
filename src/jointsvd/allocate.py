"""A budget in, a plan out: which layers stay dense, are factored alone or share a factor, and at which rank.

Every choice has an error (the change of the network's output, to second order; see `weighted.py`) and a cost in
parameters and FLOPs. One price for each budget turns costs into errors; at given prices every option takes the rank
whose eigenvalues are all worth their price, or stays dense, and the prices at which the budgets just hold come by
bisection.
"""

from collections.abc import Sequence
from math import inf
from typing import Any

from torch import Tensor, nn

from jointsvd.calibrate import Statistics
from jointsvd.cost import num_parameters
from jointsvd.layers import is_matrix, unfold
from jointsvd.options import Choice, Cost, Layer, Option, alone, cheapest, fits, total
from jointsvd.plan import Plan
from jointsvd.sharing import merge
from jointsvd.weighted import with_ridge


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

    FLOPs are those of the layers that can be factored: grouped convs are left out. Both budgets hold if both are given.
    share: whether layers may share factors. rank_multiple: ranks are multiples of it. Returns the plan and what became
    of every layer.

    Raises ValueError for no budget, one below 1, or one that no plan reaches, naming the smallest network there is.
    """
    if (params is None and flops is None) or not all(budget is None or budget >= 1 for budget in (params, flops)):
        raise ValueError(f"give params=, flops= or both, as factors of 1 or more; got {params}, {flops}")
    if rank_multiple < 1:
        raise ValueError(f"rank_multiple must be 1 or more, got {rank_multiple}")
    layers = _layers(model, statistics)
    dense = total(layer.dense_cost for layer in layers)
    kept = num_parameters(model) - dense[0]  # biases, norms and what cannot be factored
    limits = ((dense[0] + kept) / params - kept if params else inf, dense[1] / flops if flops else inf)

    options = [alone(layer) for layer in layers]
    _check_reachable(options, limits, rank_multiple, kept)
    prices = _find_prices(options, limits, rank_multiple)
    if share:
        options = merge(options, prices, rank_multiple)
        prices = _find_prices(options, limits, rank_multiple)
    choices = _fill([cheapest(option, prices, rank_multiple) for option in options], limits, rank_multiple)
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
        C, G = (with_ridge(moment.cpu()) for moment in statistics.metric(name))
        layers.append(Layer(name, W, C, G, 2 * len(W) * vertical, 2 * W.shape[1] * horizontal, *sides))
    return layers


def _check_reachable(options: Sequence[Option], limits: Cost, multiple: int, kept: float) -> None:
    """Raises ValueError if a limit cannot be met at all."""
    smallest = [Choice(option, multiple if option.largest_rank(multiple) else 0).cost for option in options]
    params, flops = total(smallest)
    if params > limits[0] or flops > limits[1]:
        dense = total(option.dense_cost for option in options)
        raise ValueError(
            f"no plan reaches this budget: at rank {multiple} everywhere the network has {dense[1] / flops:.4g} times "
            f"fewer FLOPs and {(dense[0] + kept) / (params + kept):.4g} times fewer parameters"
        )


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
