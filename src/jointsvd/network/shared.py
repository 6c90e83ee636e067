"""Whether layers still share what they should: PyTorch knows nothing of shared factors, and takes some apart."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from torch import nn

from jointsvd.network.interface import StandIn


def mark_shared(layers: Iterable[StandIn], members: Sequence[str], parts: Sequence[str]) -> None:
    """Remember in each layer with whom it shares the weights of which layers in it."""
    for layer in layers:
        layer.shares = (tuple(members), tuple(parts))


def check_sharing(network: nn.Module) -> None:
    """Raises ValueError if factors that layers of `network` share came apart into copies, one a layer, which then count
    and train apart: after ``network.to("meta")``, after ``load_state_dict(assign=True)``, or with PyTorch's conversion
    flags. Call it before a training loop of yours.

    The state dict repeats a shared factor under every name: a moving average that goes over it moves the factor once
    for each. Go over ``network.parameters()`` or `unique_tensors` instead.
    """
    groups: dict[tuple[tuple[str, ...], tuple[str, ...]], list[nn.Module]] = defaultdict(list)
    for module in network.modules():
        if isinstance(module, StandIn) and module.shares:
            groups[module.shares].append(module)
    for (members, parts), layers in groups.items():
        for part in parts:
            if len({id(layer.get_submodule(part).weight) for layer in layers}) > 1:
                raise ValueError(
                    f"{', '.join(members)}: the factor {part} they share came apart into copies (by .to('meta') or "
                    "load_state_dict(assign=True)?): build the network again, and load its weights with load_compressed"
                )
