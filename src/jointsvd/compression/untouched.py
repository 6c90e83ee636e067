"""Which layers can be factored, and why others are left as they are."""

from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from jointsvd.network.layers import MatrixLayer, is_matrix

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def matrix_layers(model: nn.Module, running: Collection[str]) -> Iterator[tuple[str, MatrixLayer]]:
    """Those of the layers named in `running` that can be factored, in the network's order."""
    for name, module, reason in _all_layers(model):
        if is_matrix(module) and not reason and name in running:
            yield name, module


def untouched(model: nn.Module, running: Collection[str], seen: Collection[str]) -> list[dict[str, Any]]:
    """What of `model` has parameters and cannot be factored: name, class, parameters (shared ones at the first layer
    that has them) and the reason; all norms in one line at the end.

    running: layers that ran on the calibration images; seen: those of them that the output depended on.
    """
    lines, norms, counted = [], Counter[str](), set[int]()
    for name, module, reason in _all_layers(model):
        if is_matrix(module) and not reason:
            reason = "" if name in seen else "its output changed nothing" if name in running else "did not run"
        if not reason:
            continue
        parameters = {id(p): p.numel() for p in module._parameters.values() if p is not None and id(p) not in counted}
        counted |= parameters.keys()
        if isinstance(module, _NORMS):
            norms[type(module).__name__] += sum(parameters.values())
        else:
            line = {"name": name, "class": type(module).__name__, "parameters": sum(parameters.values())}
            lines.append(line | {"reason": reason})
    if norms:
        lines.append(
            {"name": "norms", "class": ", ".join(sorted(norms)), "parameters": norms.total(), "reason": "norm"}
        )
    return lines


def _all_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """(name, module, why it cannot be factored) of each module with parameters of its own; "" if it can."""
    users = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    for name, module in model.named_modules():
        if not any(p is not None for p in module._parameters.values()):
            continue
        yield name, module, _reason(module, users)


def _reason(module: nn.Module, users: Counter[int]) -> str:
    if is_matrix(module):
        return "shares its weight with another layer" if users[id(module.weight)] > 1 else ""
    if type(module) is nn.Conv2d:
        return f"grouped conv ({module.groups} groups)"
    for base in (nn.Conv2d, nn.Linear):
        if isinstance(module, base):
            return f"a subclass of {base.__name__} may compute something else"
    return "norm" if isinstance(module, _NORMS) else "no Conv2d or Linear"
