"""A dense network and a plan in, a network of factor layers out."""

from copy import deepcopy
from typing import cast

import torch
from torch import Tensor, nn

from jointsvd.decompose import NUM_ITERATIONS, bijsvd, ljsvd, rjsvd
from jointsvd.layers import FactorizedConv2d, FactorLayer, TwoBranchConv2d, factor_layer, fold_u, fold_v, unfold
from jointsvd.plan import Group, Plan


def build_structure(model: nn.Module, plan: Plan) -> nn.Module:
    """A copy of `model` with the planned layers as factor layers of random weights; shared factors are one Parameter.

    Everything the plan does not name keeps its weights. This is the network to load weights into, or to train from
    scratch. Raises ValueError for a wrapped model, and for members that are missing, no ungrouped convs, or do not fit
    together.
    """
    if hasattr(model, "module") and isinstance(model.module, nn.Module):
        raise ValueError(f"compress the network inside {type(model).__name__} (its .module), before it is wrapped")
    structure = deepcopy(model)
    for group in plan.groups:
        convs = _members(structure, group)
        layers = [factor_layer(conv, group.left_rank, group.right_rank) for conv in convs]
        _share(layers, group)
        for conv, layer in zip(convs, layers, strict=True):
            _replace(structure, conv, layer)
    return structure


def compress_model(model: nn.Module, plan: Plan, *, iterations: int = NUM_ITERATIONS) -> nn.Module:
    """A copy of `model` in which each group is replaced by its joint decomposition; `model` stays as it was.

    iterations: K of Bi-JSVD. Raises ValueError as `build_structure` does, for ranks too large for their layers, and
    for weights that hold NaN or infinite values.
    """
    compressed = build_structure(model, plan)
    for group in plan.groups:
        Ws = [unfold(conv.weight) for conv in _members(model, group)]
        try:
            factors = _decompose(Ws, group, iterations)
        except ValueError as error:
            raise ValueError(f"group {', '.join(group.members)}: {error}") from error
        for name, pairs in zip(group.members, factors, strict=True):
            _fill(cast(FactorLayer, compressed.get_submodule(name)), pairs)
    return compressed


def check_structure(model: nn.Module, plan: Plan) -> None:
    """Raises ValueError unless the planned layers of `model` are factor layers that share what the plan says."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for group in plan.groups:
        names = ", ".join(group.members)
        layers = [modules.get(name) for name in group.members]
        wanted = TwoBranchConv2d if group.left_rank and group.right_rank else FactorizedConv2d
        if not all(isinstance(layer, wanted) for layer in layers):
            raise ValueError(f"{names}: the network does not have the {wanted.__name__} of the plan there")
        factors = cast(list[FactorLayer], layers)
        left = [_left(layer).u.weight for layer in factors] if group.left_rank else []
        right = [_right(layer).v.weight for layer in factors] if group.right_rank else []
        if any(weight is not shared[0] for shared in (left, right) for weight in shared):
            raise ValueError(f"{names}: a factor they share came apart into copies (by load_state_dict(assign=True)?)")
        ranks = (left[0].shape[0] if left else 0, right[0].shape[1] if right else 0)
        if ranks != (group.left_rank, group.right_rank):
            raise ValueError(f"{names}: the network has (left, right) ranks {ranks}, not those of the plan")


def _decompose(Ws: list[Tensor], group: Group, iterations: int) -> list[list[tuple[Tensor, Tensor]]]:
    """For each member the pairs (U, V) whose products add up to it: right pair first, then left."""
    if group.left_rank and group.right_rank:
        Us, V, U, Vs = bijsvd(Ws, group.left_rank, group.right_rank, iterations=iterations)
        return [[(U_n, V), (U, V_n)] for U_n, V_n in zip(Us, Vs, strict=True)]
    if group.left_rank:
        U, Vs = ljsvd(Ws, group.left_rank)
        return [[(U, V_n)] for V_n in Vs]
    Us, V = rjsvd(Ws, group.right_rank)
    return [[(U_n, V)] for U_n in Us]


@torch.no_grad()
def _fill(layer: FactorLayer, pairs: list[tuple[Tensor, Tensor]]) -> None:
    branches = [layer.right, layer.left] if isinstance(layer, TwoBranchConv2d) else [layer]
    for branch, (U, V) in zip(branches, pairs, strict=True):
        branch.u.weight.copy_(fold_u(U, branch.u.kernel_size[0]))
        branch.v.weight.copy_(fold_v(V, branch.v.kernel_size[1]))


def _share(layers: list[FactorLayer], group: Group) -> None:
    """Assign the first member's shared factors to all members: v of the right branch, u of the left one."""
    for layer in layers[1:]:
        if group.right_rank:
            _right(layer).v.weight = _right(layers[0]).v.weight
        if group.left_rank:
            _left(layer).u.weight = _left(layers[0]).u.weight


def _right(layer: FactorLayer) -> FactorizedConv2d:
    return layer.right if isinstance(layer, TwoBranchConv2d) else layer


def _left(layer: FactorLayer) -> FactorizedConv2d:
    return layer.left if isinstance(layer, TwoBranchConv2d) else layer


def _members(model: nn.Module, group: Group) -> list[nn.Conv2d]:
    """The convs that the group names, checked to have the side in common that the group shares."""
    modules = dict(model.named_modules(remove_duplicate=False))
    convs: list[nn.Conv2d] = []
    for name in group.members:
        module = modules.get(name)
        if type(module) is not nn.Conv2d:  # a subclass may compute something else
            found = "nothing" if module is None else type(module).__name__
            raise ValueError(f"the plan decomposes {name!r}, which must be a plain nn.Conv2d; the network has {found}")
        convs.append(module)
    sides = []
    if group.right_rank:
        sides.append(("RJSVD shares V: output channels and kernel width", lambda c: (c.out_channels, c.kernel_size[1])))
    if group.left_rank:
        sides.append(("LJSVD shares U: input channels and kernel height", lambda c: (c.in_channels, c.kernel_size[0])))
    for what, key in sides:
        if len({key(conv) for conv in convs}) > 1:
            keys = dict(zip(group.members, map(key, convs), strict=True))
            raise ValueError(f"{what} must be equal in a group, got {keys}")
    return convs


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` wherever `old` is registered: a module used under several names stays one."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children() would skip a second name
            if child is old:
                setattr(parent, name, new)
