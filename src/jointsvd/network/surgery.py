"""A dense network and a plan in, a network of factor layers out."""

from collections.abc import Callable
from typing import Protocol, cast

from torch import Tensor, nn

from jointsvd.decomposition.spanned import Moment
from jointsvd.decomposition.svd import NUM_ITERATIONS, bijsvd, ljsvd, rjsvd
from jointsvd.decomposition.tucker import TuckerFactors, coupled_tucker2, tucker2
from jointsvd.decomposition.weighted import weighted_bijsvd
from jointsvd.network.checked import Repeats, check_arguments
from jointsvd.network.copying import bake, copied
from jointsvd.network.layers import (
    CoupledTuckerConv2d,
    FactorLayer,
    FactorPair,
    MatrixLayer,
    TuckerConv2d,
    TwoBranches,
    factor_layer,
    fold_u,
    fold_v,
    unfold,
)
from jointsvd.network.lifted import lift
from jointsvd.network.narrowing import check_narrow, narrow
from jointsvd.network.plan import AnyGroup, Group, Plan, TuckerGroup
from jointsvd.network.progress import bar
from jointsvd.network.random_state import random_state_kept
from jointsvd.network.ranks import check_ranks
from jointsvd.network.replacing import replace
from jointsvd.network.shared import mark_shared


def build_structure(model: nn.Module, plan: Plan) -> nn.Module:
    """A copy of `model` with the planned layers as factor layers of random weights; shared factors are one Parameter.
    The weights are drawn from PyTorch's global generator, as those of any new layer.

    Everything the plan does not name keeps its weights; weights that are computed before every pass (weight norms,
    pruning masks, parametrizations) become plain ones everywhere, if the plan names any layer. This is the network to
    load weights into, or to train from scratch. Raises ValueError for a wrapped model or one that cannot be copied, for
    members that are missing, no ungrouped convs, have hooks, or do not fit together, and for ranks above full rank.
    """
    if hasattr(model, "module") and isinstance(model.module, nn.Module):
        raise ValueError(f"compress the network inside {type(model).__name__} (its .module), before it is wrapped")
    structure = _plain(model, plan)
    for group in plan.groups:
        members = _members(structure, group)
        check_ranks(members, group)
        factors = [factor_layer(layer, group) for layer in members]
        _share(factors, group)
        for old, new in zip(members, factors, strict=True):
            replace(structure, old, new)
    return structure


def _plain(model: nn.Module, plan: Plan) -> nn.Module:
    """A copy without the channels that go, in which all that the plan names can be factored."""
    names = {name for group in plan.groups for name in group.members}
    if not names and not plan.narrowed:
        return copied(model)
    return lift(narrow(bake(copied(model)), plan.narrowed), names)


class Metrics(Protocol):
    """What knows how much an error in a layer matters."""

    def metric(self, name: str) -> tuple[Moment, Moment]:
        """(C, G) of the layer of that name, as `decomposition.weighted` takes them."""


@random_state_kept()
def apply_plan(
    model: nn.Module, plan: Plan, *, iterations: Repeats = NUM_ITERATIONS, statistics: Metrics | None = None
) -> nn.Module:
    """A copy of `model` in which each group is replaced by its joint decomposition; `model` stays as it was.

    The bits of the factors are those of this machine, of as many threads as PyTorch uses: sums over more threads are
    rounded otherwise.

    iterations: K of Bi-JSVD and NC_CTD. statistics: of the members (`collect_statistics`); the change of the network's
    output is then made small, not that of its weights. Raises ValueError as `build_structure` does, for
    ranks too large for their layers, and for weights that hold NaN or infinite values.
    """
    check_arguments(apply_plan, {"iterations": iterations})
    compressed = build_structure(model, plan)
    dense = _plain(model, plan)
    for group in bar(plan.groups, "Decomposing"):
        try:
            factors = _decompose(_members(dense, group), group, iterations, statistics)
        except ValueError as error:
            raise ValueError(f"group {', '.join(group.members)}: {error}") from error
        for name, weights in zip(group.members, factors, strict=True):
            layer = compressed.get_submodule(name)
            for part, weight in weights.items():
                _weight(layer, part).data.copy_(weight)
    return compressed


compress_model = apply_plan  # the name it had before, for code that still has it


def check_structure(model: nn.Module, plan: Plan) -> None:
    """Raises ValueError unless the planned layers of `model` are factor layers that share what the plan says, and have
    as many channels between them."""
    modules = dict(model.named_modules(remove_duplicate=False))
    check_narrow(modules, plan.narrowed)
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
        return TwoBranches, (group.left_rank, group.right_rank)
    return FactorPair, (group.left_rank or group.right_rank,)


def _shared_parts(group: AnyGroup) -> list[str]:
    """The convs in the group's factor layers whose weight is one for all members."""
    if isinstance(group, TuckerGroup):
        return ["shared.first", "shared.core", "shared.last"] if group.shared else []
    if group.left_rank and group.right_rank:
        return ["right.v", "left.u"]
    return ["u"] if group.left_rank else ["v"]


def _decompose(
    layers: list[MatrixLayer], group: AnyGroup, iterations: int, statistics: Metrics | None
) -> list[dict[str, Tensor]]:
    """For each member the weights of the layers in its factor layer."""
    if isinstance(group, TuckerGroup):
        return _decompose_tucker(layers, group, iterations)
    Ws = [unfold(layer.weight.detach()) for layer in layers]
    Us, V, U, Vs = _factors(Ws, group, iterations, statistics)
    pairs: list[dict[str, Tensor]] = []
    for n, layer in enumerate(layers):
        if group.left_rank and group.right_rank:
            pairs.append(_pair(layer, Us[n], V, "right.") | _pair(layer, U, Vs[n], "left."))
        else:
            pairs.append(_pair(layer, U, Vs[n]) if group.left_rank else _pair(layer, Us[n], V))
    return pairs


def _factors(
    Ws: list[Tensor], group: Group, iterations: int, statistics: Metrics | None
) -> tuple[list[Tensor], Tensor, Tensor, list[Tensor]]:
    """(U_n, V, U, V_n), of which a method without a left or right rank leaves its two empty."""
    nothing = Ws[0].new_zeros(0, 0)
    if statistics is not None:
        metrics = [statistics.metric(name) for name in group.members]
        Cs, Gs = ([metric[side] for metric in metrics] for side in (0, 1))
        return weighted_bijsvd(Ws, Cs, Gs, group.left_rank, group.right_rank)
    if group.left_rank and group.right_rank:
        return bijsvd(Ws, group.left_rank, group.right_rank, iterations=iterations)
    if group.left_rank:
        return [], nothing, *ljsvd(Ws, group.left_rank)
    return *rjsvd(Ws, group.right_rank), nothing, []


def _decompose_tucker(layers: list[MatrixLayer], group: TuckerGroup, iterations: int) -> list[dict[str, Tensor]]:
    Ws = [layer.weight.permute(2, 3, 1, 0) for layer in layers]
    if not group.shared:
        return [_triple(tucker2(W, group.own)) for W in Ws]
    own, shared = coupled_tucker2(Ws, group.own, group.shared, iterations=iterations)
    return [_triple(factors, "own.") | _triple(shared, "shared.") for factors in own]


def _pair(layer: MatrixLayer, U: Tensor, V: Tensor, branch: str = "") -> dict[str, Tensor]:
    if isinstance(layer, nn.Linear):
        return {f"{branch}u": U.T, f"{branch}v": V.T}
    height, width = layer.kernel_size
    return {f"{branch}u": fold_u(U, height), f"{branch}v": fold_v(V, width)}


def _triple(factors: TuckerFactors, branch: str = "") -> dict[str, Tensor]:
    A, core, B = factors
    first, last = A.T[:, :, None, None], B.T[:, :, None, None]
    return {f"{branch}first": first, f"{branch}core": core.permute(3, 2, 0, 1), f"{branch}last": last}


def _share(layers: list[FactorLayer], group: AnyGroup) -> None:
    """Assign the first member's shared factors to all members."""
    parts = _shared_parts(group)
    if len(layers) > 1:
        mark_shared(layers, group.members, parts)
    for part in parts:
        for layer in layers[1:]:
            layer.get_submodule(part).weight = _weight(layers[0], part)


def _weight(layer: nn.Module, part: str) -> nn.Parameter:
    return cast(nn.Parameter, layer.get_submodule(part).weight)


def _members(model: nn.Module, group: AnyGroup) -> list[MatrixLayer]:
    """The layers that the group names, checked to have the side in common that the group shares."""
    modules = dict(model.named_modules(remove_duplicate=False))
    layers: list[MatrixLayer] = []
    for name in group.members:
        module = modules.get(name)
        if type(module) not in (nn.Conv2d, nn.Linear):  # a subclass may compute something else
            found = "nothing" if module is None else type(module).__name__
            raise ValueError(
                f"the plan decomposes {name!r}, which must be a plain nn.Conv2d or nn.Linear; the network has {found}"
            )
        layers.append(cast(MatrixLayer, module))
    for what, key in _equal_sides(group):
        keys = {name: key(layer) for name, layer in zip(group.members, layers, strict=True)}
        if len(set(keys.values())) > 1 or len({type(layer) for layer in layers}) > 1:
            raise ValueError(f"{what} must be equal in a group, got {keys}")
    return layers


def _equal_sides(group: AnyGroup) -> list[tuple[str, Callable[[MatrixLayer], tuple[int, ...]]]]:
    if isinstance(group, TuckerGroup):
        what = "NC_CTD shares a whole Tucker-2: the weights' shapes"
        return [(what, lambda layer: tuple(layer.weight.shape))] if group.shared else []
    sides: list[tuple[str, Callable[[MatrixLayer], tuple[int, ...]]]] = []
    if group.right_rank and len(group.members) > 1:
        what = "RJSVD shares V: output channels and kernel width"
        sides.append((what, lambda layer: (layer.weight.shape[0], *layer.weight.shape[3:])))
    if group.left_rank:
        what = "LJSVD shares U: input channels and kernel height"
        sides.append((what, lambda layer: tuple(layer.weight.shape[1:3])))
    return sides
