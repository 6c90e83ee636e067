"""What was chosen for the layers of a compressed network, and what it costs."""

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from jointsvd.compression.options import Choice, Layer
from jointsvd.compression.statistics import Statistics
from jointsvd.decomposition.metric import objective
from jointsvd.network.layers import FactorPair, is_matrix, unfold, unfolded_shape
from jointsvd.network.lifted import outer


def report_of(
    choices: Sequence[Choice], model: nn.Module, compressed: nn.Module, statistics: Statistics, dense: nn.Module
) -> list[dict[str, Any]]:
    """A line for each choice, in the network's order; `Compressed` says what is in it. dense: with the channels that
    `model` does not have."""
    order = [name for name, _ in model.named_modules()]
    choices = sorted(choices, key=lambda choice: order.index(outer(choice.option.layers[0].name)))
    return [_line(choice, model, compressed, statistics, dense) for choice in choices]


def _line(
    choice: Choice, model: nn.Module, compressed: nn.Module, statistics: Statistics, dense: nn.Module
) -> dict[str, Any]:
    layers, after = choice.option.layers, choice.cost
    before = dense_flops = flops = 0.0
    channels: dict[str, list[int]] = {}
    for layer in layers:
        (rows, cols), (vertical, horizontal) = layer.shape, statistics.positions[layer.name]
        num, gone = _dense(layer, dense)
        for side, (some, all_) in gone.items():  # of all members that lost any
            now, was = channels.get(side, (0, 0))
            channels[side] = [now + some, was + all_]
        before += num
        dense_flops += 2 * num * horizontal
        flops += 2 * (choice.rank * (rows * vertical + cols * horizontal) or rows * cols * horizontal)
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
        "channels": channels,
        "parameters": int(after[0]),
        "dense_parameters": int(before),
        "flops": int(flops),
        "dense_flops": int(dense_flops),
        "predicted_error": choice.error,
        "reached_error": reached,
    }


def _dense(layer: Layer, dense: nn.Module) -> tuple[int, dict[str, list[int]]]:
    """The weights it has in the dense network, and how many channels it still reads or writes, of how many, where some
    are gone."""
    (rows, cols), here = layer.shape, dict(dense.named_modules()).get(layer.name)
    if not is_matrix(here) or unfolded_shape(here) == layer.shape:  # lifted, it has all
        return rows * cols, {}
    was = here.weight.shape[:2]
    now = was[0] * cols // unfolded_shape(here)[1], was[1] * rows // unfolded_shape(here)[0]
    sides = zip(("writes", "reads"), now, was, strict=True)
    return here.weight.numel(), {side: [some, num] for side, some, num in sides if some < num}
