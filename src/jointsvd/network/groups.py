"""Which convs are decomposed together, by the paper's rule: those at one place of the blocks of a stage."""

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from torch import nn

_FIRST_STAGE = {"block": 2, "plain": 3}  # conv3_x of ResNets; VGG's first two stages stay dense as conv2_x does


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
