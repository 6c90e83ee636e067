"""What was chosen for the layers of a compressed network, and what it costs."""

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from jointsvd.compression.options import Choice
from jointsvd.compression.statistics import Statistics
from jointsvd.decomposition.metric import objective
from jointsvd.network.layers import FactorPair, unfold
from jointsvd.network.lifted import outer


def report_of(
    choices: Sequence[Choice], model: nn.Module, compressed: nn.Module, statistics: Statistics
) -> list[dict[str, Any]]:
    """A line for each choice, in the network's order; `Compressed` says what is in it."""
    order = [name for name, _ in model.named_modules()]
    choices = sorted(choices, key=lambda choice: order.index(outer(choice.option.layers[0].name)))
    return [_line(choice, model, compressed, statistics) for choice in choices]


def _line(choice: Choice, model: nn.Module, compressed: nn.Module, statistics: Statistics) -> dict[str, Any]:
    layers, before, after = choice.option.layers, choice.option.dense_cost, choice.cost
    dense_flops = flops = 0.0
    for layer in layers:
        (rows, cols), (vertical, horizontal) = layer.shape, statistics.positions[layer.name]
        dense_flops += 2 * rows * cols * horizontal
        flops += 2 * choice.rank * (rows * vertical + cols * horizontal)
    reached = 0.0
    if choice.rank:
        pairs = [cast(FactorPair, compressed.get_submodule(layer.name)) for layer in layers]
        Ws = [unfold(cast(Tensor, model.get_submodule(layer.name).weight)) for layer in layers]
        Cs, Gs = zip(*(statistics.measured(layer.name) for layer in layers), strict=True)
        reached = objective(Ws, Cs, Gs, [unfold(pair.u.weight) @ unfold(pair.v.weight) for pair in pairs])
    return {
        "layers": [layer.name if choice.rank else outer(layer.name) for layer in layers],
        "choice": choice.option.kind if choice.rank else "dense",
        "rank": choice.rank or None,
        "largest_rank": choice.option.largest_rank(1),
        "parameters": int(after[0]),
        "dense_parameters": int(before[0]),
        "flops": int(flops if choice.rank else dense_flops),
        "dense_flops": int(dense_flops),
        "predicted_error": choice.error,
        "reached_error": reached,
    }
