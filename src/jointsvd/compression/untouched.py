"""Which layers can be factored, and why others are left as they are."""

from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from jointsvd.compression.statistics import Statistics
from jointsvd.network.cost import num_parameters
from jointsvd.network.interface import what_would_be_lost
from jointsvd.network.layers import MatrixLayer, is_matrix
from jointsvd.network.lifted import Lifted

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def matrix_layers(model: nn.Module, running: Collection[str]) -> Iterator[tuple[str, MatrixLayer]]:
    """Those of the layers named in `running` that can be factored, in the network's order."""
    for name, module, reason in _all_layers(model):
        if is_matrix(module) and not reason and name in running:
            yield name, module


def untouched(model: nn.Module, statistics: Statistics) -> list[dict[str, Any]]:
    """What of `model` has parameters and was not chosen for: name, class, parameters (shared ones at the first layer
    that has them), their share of the network's in percent, and the reason; all norms in one line at the end."""
    lines: list[dict[str, Any]] = []
    norms, counted, whole = Counter[str](), set[int](), max(num_parameters(model), 1)
    for name, module, reason in _all_layers(model):
        reason = reason or (_not_seen(name, statistics) if is_matrix(module) else "")
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
    return [line | {"share": 100 * line["parameters"] / whole} for line in lines]


def _not_seen(name: str, statistics: Statistics) -> str:
    if name in statistics.inputs:
        return ""
    if name in statistics.hidden:
        return "runs under torch.no_grad, so that nothing tells how much it matters"
    return "its output changed nothing" if name in statistics.positions else "did not run"


def _all_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """(name, module, why it cannot be factored) of each module with parameters of its own; "" if it can."""
    users = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    for name, module in model.named_modules():
        if not any(p is not None for p in module._parameters.values()):
            continue
        yield name, module, _reason(module, users)


def _reason(module: nn.Module, users: Counter[int]) -> str:
    if isinstance(module, Lifted):
        return ""
    if is_matrix(module):
        if users[id(module.weight)] > 1:
            return "shares its weight with another layer"
        lost = what_would_be_lost(module)
        return f"has {lost} of its own" if lost else ""
    if type(module) is nn.Conv2d:
        return f"grouped conv ({module.groups} groups)"
    for base in (nn.Conv2d, nn.Linear):
        if isinstance(module, base):
            return f"a subclass of {base.__name__} may compute something else"
    if type(module) is nn.ConvTranspose2d:
        return "transposed conv of groups, or whose kernels overlap"
    if isinstance(module, nn.Conv1d | nn.Conv3d) and type(module) in (nn.Conv1d, nn.Conv3d):
        return f"grouped conv ({module.groups} groups)" if module.groups > 1 else "conv of volumes"
    return "norm" if isinstance(module, _NORMS) else "no Conv2d or Linear"
