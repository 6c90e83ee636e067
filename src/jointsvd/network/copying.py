"""Copies of networks of others: with the tensors that their last forward pass left in them, and with weights that are
computed before every pass (weight norms, spectral norms, pruning masks, parametrizations) as plain ones."""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._pytree import tree_leaves


def copied(model: nn.Module) -> nn.Module:
    """A deep copy. Tensors that a forward pass computed and stored in a module, which `deepcopy` refuses, are copied
    without their history; parameters keep what was set on them. Raises ValueError for what cannot be copied."""
    copy = _copied(model, {id(tensor): tensor.detach().clone() for tensor in _computed(model)})
    for old, new in zip(model.parameters(), copy.parameters(), strict=True):
        vars(new).update(vars(old))
    return copy


def without_values(model: nn.Module) -> nn.Module:
    """A copy on the meta device, for which no memory is taken. Raises ValueError as `copied`."""
    memo: dict[int, Any] = {}
    for tensor in (*_computed(model), *model.parameters(), *model.buffers()):
        empty = tensor.detach().to("meta")
        if isinstance(tensor, nn.Parameter):
            empty = nn.Parameter(empty, requires_grad=tensor.requires_grad)
        memo[id(tensor)] = empty
    return _copied(model, memo)


def _computed(model: nn.Module) -> list[Tensor]:
    """Tensors that modules keep of a forward pass."""
    kept = [leaf for module in model.modules() for leaf in tree_leaves(vars(module)) if isinstance(leaf, Tensor)]
    return [tensor for tensor in kept if not tensor.is_leaf]


def _copied(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    try:
        return deepcopy(model, memo)
    except Exception as error:  # whatever its parts may say
        raise ValueError(
            f"{type(model).__name__} cannot be copied: make copy.deepcopy(model) work first ({error})"
        ) from error


def bake(model: nn.Module) -> nn.Module:
    """Make every weight of `model` that is computed from other parameters a plain one, in place. Returns `model`."""
    for module in list(model.modules()):
        mode, module.training = module.training, False  # a spectral norm would take a step
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, WeightNorm):
                remove_weight_norm(module, hook.name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(module, hook.name)
            elif isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)
        if parametrize.is_parametrized(module):
            _bake_parametrizations(module)
        module.training = mode
    return model


def _bake_parametrizations(module: Any) -> None:
    """Without PyTorch's `remove_parametrizations`, which takes them from the class, that copies have in common."""
    module.parametrizations.eval()
    computed = {name: (getattr(module, name), list(own.parameters())) for name, own in module.parametrizations.items()}
    module.__class__ = type(module).__bases__[0]
    del module.parametrizations
    for name, (value, parameters) in computed.items():
        trained = any(parameter.requires_grad for parameter in parameters)
        module.register_parameter(name, nn.Parameter(value.detach().clone(), requires_grad=trained))


def like(parameter: nn.Parameter, old: Tensor) -> nn.Parameter:
    """`parameter` trained or frozen, marked and laid out in memory as `old`."""
    vars(parameter).update(vars(old))
    last = old.ndim == 4 and old.is_contiguous(memory_format=torch.channels_last) and not old.is_contiguous()
    if last and parameter.ndim == 4:
        parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    parameter.requires_grad_(old.requires_grad)
    return parameter
