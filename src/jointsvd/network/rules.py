"""The paper's rules: which ranks a method gives each group for one rank_rate."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10, prod, sqrt
from typing import Any, Literal

from torch import nn

from jointsvd.network.checked import AboveZero, Share, check_arguments
from jointsvd.network.groups import find_groups
from jointsvd.network.layers import unfolded_shape
from jointsvd.network.methods import WITH_RANK_RATE, Key
from jointsvd.network.plan import Group, Plan, TuckerGroup

Members = tuple[str, ...]


def plan_compression(
    model: nn.Module,
    method: Key,
    *,
    rank_rate: AboveZero,
    left_share: Share = 0.5,
    own_per_shared: AboveZero = 1.0,
    hid: Literal["decompose", "dense"] = "decompose",
    layers: Sequence[str] | None = None,
) -> Plan:
    """The paper's plan for `model`: every method spends the parameters that SVD has at `rank_rate`; the matrix methods
    group by group, the Tucker methods over the whole network.

    SVD takes rank ``floor(rank_rate * base)`` for each layer, base = O for a conv wider than 1x1 and min(I, O) for a
    1x1. `left_share` is p of Bi-JSVD, the share of the rank that is left; p = 0 is RJSVD-2 and p = 1 is LJSVD.
    `own_per_shared` is n of NC_CTD, own ranks for one shared (the paper reports the better of 1 and 0.5).
    `hid` = "dense" leaves the HID layers as they are (figure 5). `layers` as in `find_groups`.

    Raises ValueError for unknown methods and values out of range, for a group whose ranks are all 0, for one whose
    factors would hold no fewer parameters than its dense members, and for 1x1 convs under a Tucker method.
    """
    if method not in WITH_RANK_RATE:
        raise ValueError(f"unknown method {method!r}; one of {', '.join(WITH_RANK_RATE)}")
    given = {"rank_rate": rank_rate, "left_share": left_share, "own_per_shared": own_per_shared}
    check_arguments(plan_compression, {**given, "hid": hid, "layers": layers})
    treatment: Literal["alone", "joint", "dense"] = "joint" if method == "rjsvd1" else "alone"
    found = find_groups(model, hid="dense" if hid == "dense" else treatment, layers=layers)
    if method in ("svd", "tucker2"):
        found = [(name,) for members in found for name in members]
    modules = dict(model.named_modules())
    groups = {members: [modules[name] for name in members] for members in found}
    settings: dict[str, Any] = {"method": method, "rank_rate": rank_rate, "hid": hid}
    if method == "bijsvd":
        settings["left_share"] = left_share
    if method == "nc_ctd":
        settings["own_per_shared"] = own_per_shared
    if method in ("tucker2", "nc_ctd"):
        return Plan(tuple(_tucker_groups(groups, rank_rate, own_per_shared)), settings)
    share = {"ljsvd": 1.0, "bijsvd": left_share}.get(method, 0.0)
    rates = {members: _Rates.of(convs, share) for members, convs in groups.items()}
    _check_rates(rates, rank_rate)
    return Plan(tuple(Group(members, *rate.ranks(rank_rate)) for members, rate in rates.items()), settings)


def _tucker_groups(
    groups: Mapping[Members, Sequence[nn.Conv2d]], rank_rate: float, own_per_shared: float
) -> list[TuckerGroup]:
    """Ranks ``r_i = floor(t I)``, ``r_o = floor(t O)`` with one t for all layers, at which Tucker-2 of every layer
    alone spends what SVD does. NC_CTD splits t between own and shared ranks, and rounds.
    """
    convs = [conv for members in groups.values() for conv in members]
    if any(conv.kernel_size == (1, 1) for conv in convs):
        raise ValueError("Tucker-2 is for convs wider than 1x1 (the paper has no ResNet-50 row); name them by layers=")
    square = sum(conv.weight.numel() for conv in convs)
    linear = sum(conv.in_channels**2 + conv.out_channels**2 for conv in convs)
    svd = sum(floor(rank_rate * _base(conv) + 1e-9) * sum(unfolded_shape(conv)) for conv in convs)
    t = (sqrt(linear**2 + 4 * square * svd) - linear) / (2 * square)

    def ranks(conv: nn.Conv2d, rate: float, whole: Callable[[float], int]) -> tuple[int, int]:
        return whole(rate * conv.in_channels), whole(rate * conv.out_channels)

    found = []
    for members, (conv, *others) in groups.items():
        if others:
            num = len(members)
            parts = [own_per_shared * num / (own_per_shared * num + 1) * t, num / (own_per_shared * num + 1) * t]
            own, shared = (ranks(conv, rate, round) for rate in parts)
        else:
            own, shared = ranks(conv, t, floor), None
        _check_tucker(members, conv, own, shared, rank_rate)
        found.append(TuckerGroup(members, own, shared))
    return found


def _check_tucker(
    members: Members, conv: nn.Conv2d, own: tuple[int, int], shared: tuple[int, int] | None, rank_rate: float
) -> None:
    """Raises ValueError for a part of rank 0, one above full rank, or a group that saves nothing."""

    def cost(in_rank: int, out_rank: int) -> int:
        core = in_rank * out_rank * conv.weight[0, 0].numel()
        return conv.in_channels * in_rank + core + out_rank * conv.out_channels

    parts = [own, *([shared] if shared else [])]
    if not all(map(all, parts)):
        raise ValueError(f"rank_rate {rank_rate:g} leaves rank 0 for {', '.join(members)}; take a larger one")
    factors = len(members) * cost(*own) + (cost(*shared) if shared else 0)
    too_large = any(in_rank > conv.in_channels or out_rank > conv.out_channels for in_rank, out_rank in parts)
    if too_large or factors >= len(members) * conv.weight.numel():
        raise ValueError(
            f"rank_rate {rank_rate:g} gives {', '.join(members)} {factors:,} parameters or ranks {parts}, no saving "
            "over the dense layers; take a smaller one"
        )


@dataclass(frozen=True)
class _Rates:
    """Ranks of a group for each unit of rank_rate, such that the group spends what SVD would; the paper's table of
    rates follows from this one rule. Costs are parameters of one more rank, `dense` those of the dense layers."""

    left: float
    right: float
    left_cost: int
    right_cost: int
    svd_cost: int
    dense: int

    @classmethod
    def of(cls, convs: Sequence[nn.Conv2d], left_share: float) -> "_Rates":
        shapes = [unfolded_shape(conv) for conv in convs]
        left_cost = shapes[0][0] + sum(cols for _, cols in shapes)
        right_cost = shapes[0][1] + sum(rows for rows, _ in shapes)
        svd_cost = sum(_base(conv) * sum(shape) for conv, shape in zip(convs, shapes, strict=True))
        share = left_share if len(convs) > 1 else 0.0
        left, right = svd_cost * share / left_cost, svd_cost * (1 - share) / right_cost
        return cls(left, right, left_cost, right_cost, svd_cost, sum(map(prod, shapes)))

    def ranks(self, rank_rate: float) -> tuple[int, int]:
        """(left_rank, right_rank); products such as 160 * 0.3 land just below a whole number."""
        return floor(self.left * rank_rate + 1e-9), floor(self.right * rank_rate + 1e-9)


def _check_rates(rates: Mapping[Members, _Rates], rank_rate: float) -> None:
    """Raises ValueError if a group has no rank or saves nothing, with the rank_rate that mends it for all groups."""
    for members, rate in rates.items():
        left_rank, right_rank = rate.ranks(rank_rate)
        factors = left_rank * rate.left_cost + right_rank * rate.right_cost
        if not factors:
            smallest = max(1 / max(other.left, other.right) for other in rates.values())
            raise ValueError(
                f"rank_rate {rank_rate:g} leaves rank 0 for {', '.join(members)}; take rank_rate >= "
                f"{_three_digits(smallest, ceil):g}, or leave layers out (layers=[...])"
            )
        if factors >= rate.dense:
            largest = min(other.dense / other.svd_cost for other in rates.values())
            raise ValueError(
                f"rank_rate {rank_rate:g} gives {', '.join(members)} {factors:,} parameters, no fewer than the "
                f"{rate.dense:,} of the dense layers; take rank_rate < {_three_digits(largest, floor):g}, or leave "
                "layers dense (hid='dense', layers=[...])"
            )


def _three_digits(value: float, rounded: Callable[[float], int]) -> float:
    scale = 10 ** (2 - floor(log10(value)))
    return rounded(value * scale) / scale


def _base(conv: nn.Conv2d) -> int:
    """What rank_rate is a rate of."""
    return min(conv.in_channels, conv.out_channels) if conv.kernel_size == (1, 1) else conv.out_channels
