"""One module put in the place of another."""

from typing import Any

from torch import nn

_OF_TORCH = frozenset(vars(nn.Module()))


def replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` wherever `old` is registered, or in a list, tuple or dictionary that a module keeps: a module used
    under several names stays one."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children() would skip a second name
            if child is old:
                setattr(parent, name, new)
        for name, value in list(vars(parent).items()):
            if name not in _OF_TORCH and (value is old or isinstance(value, list | tuple | dict)):
                vars(parent)[name] = _replaced(value, old, new)


def _replaced(value: Any, old: nn.Module, new: nn.Module) -> Any:
    """`value` with `new` in the place of `old`; lists and dictionaries stay the same objects."""
    if value is old:
        return new
    if isinstance(value, list):
        value[:] = [_replaced(item, old, new) for item in value]
    elif isinstance(value, dict):
        value.update({key: _replaced(item, old, new) for key, item in value.items()})
    elif type(value) is tuple:
        return tuple(_replaced(item, old, new) for item in value)
    return value
