"""A dense network and a plan in, a network of factor layers out."""

from collections.abc import Callable
from copy import deepcopy
from typing import cast

from torch import Tensor, nn

from jointsvd.decompose import NUM_ITERATIONS, bijsvd, ljsvd, rjsvd
from jointsvd.layers import (
    CoupledTuckerConv2d,
    FactorizedConv2d,
    FactorLayer,
    TuckerConv2d,
    TwoBranchConv2d,
    factor_layer,
    fold_u,
    fold_v,
    unfold,
)
from jointsvd.plan import AnyGroup, Plan, TuckerGroup
from jointsvd.tucker import TuckerFactors, coupled_tucker2, tucker2


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
        layers = [factor_layer(conv, group) for conv in convs]
        _share(layers, group)
        for conv, layer in zip(convs, layers, strict=True):
            _replace(structure, conv, layer)
    return structure


def compress_model(model: nn.Module, plan: Plan, *, iterations: int = NUM_ITERATIONS) -> nn.Module:
    """A copy of `model` in which each group is replaced by its joint decomposition; `model` stays as it was.

    iterations: K of Bi-JSVD and NC_CTD. Raises ValueError as `build_structure` does, for ranks too large for their
    layers, and for weights that hold NaN or infinite values.
    """
    compressed = build_structure(model, plan)
    for group in plan.groups:
        try:
            factors = _decompose(_members(model, group), group, iterations)
        except ValueError as error:
            raise ValueError(f"group {', '.join(group.members)}: {error}") from error
        for name, weights in zip(group.members, factors, strict=True):
            layer = compressed.get_submodule(name)
            for part, weight in weights.items():
                _weight(layer, part).data.copy_(weight)
    return compressed


def check_structure(model: nn.Module, plan: Plan) -> None:
    """Raises ValueError unless the planned layers of `model` are factor layers that share what the plan says."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for group in plan.groups:
        names = ", ".join(group.members)
        layers = [modules.get(name) for name in group.members]
        wanted, ranks = _planned(group)
        if not all(isinstance(layer, wanted) for layer in layers):
            raise ValueError(f"{names}: the network does not have the {wanted.__name__} of the plan there")
        factors = cast(list[FactorLayer], layers)
        for part in _shared_parts(group):
            if any(_weight(layer, part) is not _weight(factors[0], part) for layer in factors):
                raise ValueError(
                    f"{names}: a factor they share came apart into copies (by load_state_dict(assign=True)?)"
                )
        if found := {layer.ranks for layer in factors} - {ranks}:
            raise ValueError(f"{names}: the network has ranks {sorted(found)}, not those of the plan, {ranks}")


def _planned(group: AnyGroup) -> tuple[type[nn.Module], tuple[int, ...]]:
    """Class and ranks of the group's factor layers."""
    if isinstance(group, TuckerGroup):
        return (CoupledTuckerConv2d, group.own + group.shared) if group.shared else (TuckerConv2d, group.own)
    if group.left_rank and group.right_rank:
        return TwoBranchConv2d, (group.left_rank, group.right_rank)
    return FactorizedConv2d, (group.left_rank or group.right_rank,)


def _shared_parts(group: AnyGroup) -> list[str]:
    """The convs in the group's factor layers whose weight is one for all members."""
    if isinstance(group, TuckerGroup):
        return ["shared.first", "shared.core", "shared.last"] if group.shared else []
    if group.left_rank and group.right_rank:
        return ["right.v", "left.u"]
    return ["u"] if group.left_rank else ["v"]


def _decompose(convs: list[nn.Conv2d], group: AnyGroup, iterations: int) -> list[dict[str, Tensor]]:
    """For each member the weights of the convs in its factor layer."""
    if isinstance(group, TuckerGroup):
        return _decompose_tucker(convs, group, iterations)
    Ws = [unfold(conv.weight) for conv in convs]
    if group.left_rank and group.right_rank:
        Us, V, U, Vs = bijsvd(Ws, group.left_rank, group.right_rank, iterations=iterations)
        right = [_pair(conv, U_n, V, "right.") for conv, U_n in zip(convs, Us, strict=True)]
        left = [_pair(conv, U, V_n, "left.") for conv, V_n in zip(convs, Vs, strict=True)]
        return [one | other for one, other in zip(right, left, strict=True)]
    if group.left_rank:
        U, Vs = ljsvd(Ws, group.left_rank)
        return [_pair(conv, U, V_n) for conv, V_n in zip(convs, Vs, strict=True)]
    Us, V = rjsvd(Ws, group.right_rank)
    return [_pair(conv, U_n, V) for conv, U_n in zip(convs, Us, strict=True)]


def _decompose_tucker(convs: list[nn.Conv2d], group: TuckerGroup, iterations: int) -> list[dict[str, Tensor]]:
    Ws = [conv.weight.permute(2, 3, 1, 0) for conv in convs]
    if not group.shared:
        return [_triple(tucker2(W, group.own)) for W in Ws]
    own, shared = coupled_tucker2(Ws, group.own, group.shared, iterations=iterations)
    return [_triple(factors, "own.") | _triple(shared, "shared.") for factors in own]


def _pair(conv: nn.Conv2d, U: Tensor, V: Tensor, branch: str = "") -> dict[str, Tensor]:
    height, width = conv.kernel_size
    return {f"{branch}u": fold_u(U, height), f"{branch}v": fold_v(V, width)}


def _triple(factors: TuckerFactors, branch: str = "") -> dict[str, Tensor]:
    A, core, B = factors
    first, last = A.T[:, :, None, None], B.T[:, :, None, None]
    return {f"{branch}first": first, f"{branch}core": core.permute(3, 2, 0, 1), f"{branch}last": last}


def _share(layers: list[FactorLayer], group: AnyGroup) -> None:
    """Assign the first member's shared factors to all members."""
    for part in _shared_parts(group):
        for layer in layers[1:]:
            layer.get_submodule(part).weight = _weight(layers[0], part)


def _weight(layer: nn.Module, part: str) -> nn.Parameter:
    return cast(nn.Parameter, layer.get_submodule(part).weight)


def _members(model: nn.Module, group: AnyGroup) -> list[nn.Conv2d]:
    """The convs that the group names, checked to have the side in common that the group shares."""
    modules = dict(model.named_modules(remove_duplicate=False))
    convs: list[nn.Conv2d] = []
    for name in group.members:
        module = modules.get(name)
        if type(module) is not nn.Conv2d:  # a subclass may compute something else
            found = "nothing" if module is None else type(module).__name__
            raise ValueError(f"the plan decomposes {name!r}, which must be a plain nn.Conv2d; the network has {found}")
        convs.append(module)
    for what, key in _equal_sides(group):
        if len({key(conv) for conv in convs}) > 1:
            keys = dict(zip(group.members, map(key, convs), strict=True))
            raise ValueError(f"{what} must be equal in a group, got {keys}")
    return convs


def _equal_sides(group: AnyGroup) -> list[tuple[str, Callable[[nn.Conv2d], tuple[int, ...]]]]:
    if isinstance(group, TuckerGroup):
        what = "NC_CTD shares a whole Tucker-2: the weights' shapes"
        return [(what, lambda conv: tuple(conv.weight.shape))] if group.shared else []
    sides: list[tuple[str, Callable[[nn.Conv2d], tuple[int, ...]]]] = []
    if group.right_rank:
        sides.append(("RJSVD shares V: output channels and kernel width", lambda c: (c.out_channels, c.kernel_size[1])))
    if group.left_rank:
        sides.append(("LJSVD shares U: input channels and kernel height", lambda c: (c.in_channels, c.kernel_size[0])))
    return sides


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` wherever `old` is registered: a module used under several names stays one."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children() would skip a second name
            if child is old:
                setattr(parent, name, new)
