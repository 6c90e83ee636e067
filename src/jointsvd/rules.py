"""The paper's rules: which convs form a group, and which ranks a method gives it for one rank_rate."""

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10, prod
from typing import Any, Literal

from torch import nn

from jointsvd.layers import unfolded_shape
from jointsvd.plan import Group, Plan

METHODS = ("svd", "rjsvd1", "rjsvd2", "ljsvd", "bijsvd")
_FIRST_STAGE = {"block": 2, "plain": 3}  # conv3_x of ResNets; VGG's first two stages stay dense as conv2_x does
Method = Literal["svd", "rjsvd1", "rjsvd2", "ljsvd", "bijsvd"]


def find_groups(
    model: nn.Module,
    *,
    hid: Literal["alone", "joint", "dense"] = "alone",
    layers: Sequence[str] | None = None,
) -> list[tuple[str, ...]]:
    """Names of the convs to decompose, those decomposed jointly in one tuple, in the order of the network.

    ResNets (timm's and torchvision's names): convs of equal shape at one place of the blocks of a stage, from layer2
    (the paper's conv3_x) on; stem, layer1 and shortcuts stay dense. VGGs: convs of equal shape between two poolings,
    from the third stage on. The HID layer (first conv of a stage, half input depth) stands alone, joins the group that
    it precedes, or stays dense.

    layers: shell patterns (``layer3.*.conv2``) that choose the convs instead of the rule above.
    Raises ValueError if nothing is found, or a pattern matches no conv.
    """
    convs = {name: module for name, module in model.named_modules() if _is_factorable(module)}
    places = _places(model, convs)
    if layers is None:
        chosen = [name for name in convs if name in places and places[name][0] >= _FIRST_STAGE[places[name][1]]]
    else:
        chosen = _matching(convs, layers)
    if not chosen:
        raise ValueError(
            "found no stages of repeated blocks (layer1, layer2, ... as in ResNets, or `features` with poolings as in "
            "VGGs); name the convs with layers=[...] patterns, or make a Plan of Groups by hand"
        )
    rows: dict[tuple[Any, ...], list[str]] = {}
    for name in chosen:
        rows.setdefault(places.get(name, (name,)), []).append(name)
    return [group for names in rows.values() for group in _split(names, convs, hid)]


def plan_compression(
    model: nn.Module,
    method: Method,
    *,
    rank_rate: float,
    left_share: float = 0.5,
    hid: Literal["decompose", "dense"] = "decompose",
    layers: Sequence[str] | None = None,
) -> Plan:
    """The paper's plan for `model`: every group gets the ranks that give it the parameters SVD has at `rank_rate`.

    SVD takes rank ``floor(rank_rate * base)`` for each layer, base = O for a conv wider than 1x1 and min(I, O) for a
    1x1. `left_share` is p of Bi-JSVD, the share of the rank that is left; p = 0 is RJSVD-2 and p = 1 is LJSVD.
    `hid` = "dense" leaves the HID layers as they are (figure 5). `layers` as in `find_groups`.

    Raises ValueError for unknown methods and values out of range, for a group whose ranks are all 0, and for one whose
    factors would hold no fewer parameters than its dense members.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; one of {', '.join(METHODS)}")
    if not 0 < rank_rate < float("inf"):
        raise ValueError(f"rank_rate must be a positive number, got {rank_rate}")
    if not 0 <= left_share <= 1:
        raise ValueError(f"left_share must be between 0 and 1, got {left_share}")
    if hid not in ("decompose", "dense"):
        raise ValueError(f"hid must be 'decompose' or 'dense', got {hid!r}")

    found = find_groups(
        model, hid="dense" if hid == "dense" else "joint" if method == "rjsvd1" else "alone", layers=layers
    )
    if method == "svd":
        found = [(name,) for members in found for name in members]
    share = {"ljsvd": 1.0, "bijsvd": left_share}.get(method, 0.0)
    convs = dict(model.named_modules())
    rates = {members: _Rates.of([convs[name] for name in members], share) for members in found}
    _check_rates(rates, rank_rate)
    groups = [Group(members, *rate.ranks(rank_rate)) for members, rate in rates.items()]
    settings: dict[str, Any] = {"method": method, "rank_rate": rank_rate, "hid": hid}
    if method == "bijsvd":
        settings["left_share"] = left_share
    return Plan(tuple(groups), settings)


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


def _check_rates(rates: Mapping[tuple[str, ...], _Rates], rank_rate: float) -> None:
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


def _is_factorable(module: nn.Module) -> bool:
    return type(module) is nn.Conv2d and module.groups == 1  # a subclass may compute something else


def _places(model: nn.Module, convs: Mapping[str, nn.Module]) -> dict[str, tuple[int, str, str]]:
    """conv name -> (stage number, kind of network, place in the block), for the stages that the names show."""
    places: dict[str, tuple[int, str, str]] = {}
    for name in convs:
        if match := re.search(r"(?:^|\.)layer(\d+)\.\d+\.(conv\d+)$", name):
            places[name] = (int(match[1]), "block", match[2])
    stage = 1
    for name, module in model.named_modules():
        if re.search(r"(?:^|\.)features\.\d+$", name):
            stage += isinstance(module, nn.MaxPool2d)
            if name in convs:
                places[name] = (stage, "plain", "conv")
    return places


def _matching(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    names = list(names)
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ValueError(f"layers: {pattern!r} matches no ungrouped conv; the convs are {', '.join(names)}")
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def _split(names: list[str], convs: Mapping[str, Any], hid: str) -> list[tuple[str, ...]]:
    """The layers at one place of a stage as groups of equal shape, the HID layer treated as `hid` says."""

    def shape(name: str) -> tuple[int, ...]:
        return tuple(convs[name].weight.shape)

    groups: dict[tuple[int, ...], list[str]] = {}
    for name in names:
        groups.setdefault(shape(name), []).append(name)
    first = names[0]
    out_channels, in_channels, *kernel = shape(first)
    wide = (out_channels, 2 * in_channels, *kernel)
    if wide in groups and len(groups[shape(first)]) == 1:
        if hid == "joint":
            groups[wide].insert(0, first)
        if hid != "alone":
            del groups[shape(first)]
    return [tuple(group) for group in groups.values()]
