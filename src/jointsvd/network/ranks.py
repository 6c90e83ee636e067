"""How large ranks can be: above full rank, factors say nothing more and only take memory."""

from collections.abc import Sequence

from jointsvd.network.layers import MatrixLayer, unfolded_shape
from jointsvd.network.plan import AnyGroup, TuckerGroup


def check_ranks(layers: Sequence[MatrixLayer], group: AnyGroup) -> None:
    """Raises ValueError for ranks of `group` above the full rank of its members' matrices, joined as they share."""
    if isinstance(group, TuckerGroup):
        sizes = {(layer.weight.shape[1], layer.weight.shape[0]) for layer in layers}
        for ranks in filter(None, (group.own, group.shared)):
            for size in sizes:
                if ranks[0] > size[0] or ranks[1] > size[1]:
                    raise ValueError(
                        f"group {', '.join(group.members)}: ranks (r_i, r_o) must be between 1 and {size}, got {ranks}"
                    )
        return
    rows, cols = zip(*map(unfolded_shape, layers), strict=True)
    largest = {"left_rank": min(rows[0], sum(cols)), "right_rank": min(sum(rows), cols[0])}
    for name, full in largest.items():
        if getattr(group, name) > full:
            raise ValueError(
                f"group {', '.join(group.members)}: {name} must be between 1 and {full} for these matrices, got "
                f"{getattr(group, name)}"
            )
