"""What a compressed network may cost, and which means may be used."""

import math
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import Literal

from torch import nn

from jointsvd.network.checked import AboveZero, Count, Repeats, check_fields
from jointsvd.network.cost import num_parameters

Engine = Literal["torch", "onnx", "int8"]


@dataclass(frozen=True)
class Budget:
    """How small or fast a compressed network is to be; all that is given holds.

    params, flops, bytes, faster: times fewer parameters, FLOPs, bytes and milliseconds than the dense network, 1 or
    more. latency_ms: milliseconds of one image. Time is measured in PyTorch on the model's device, or in the engine
    of `Means`; it and FLOPs exclude each other. Raises ValueError for values that say nothing, are out of range or
    exclude each other.
    """

    params: float | None = None
    flops: float | None = None
    bytes: float | None = None
    faster: float | None = None
    latency_ms: float | None = None

    def __post_init__(self) -> None:
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        given = {name: value for name, value in given.items() if value is not None}
        if not given:
            raise ValueError("give a budget: params, flops, bytes, faster (times fewer or faster) or latency_ms")
        for name, value in given.items():
            number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
            if name == "latency_ms":
                if not number or value <= 0:
                    raise ValueError(f"latency_ms is a number of milliseconds above 0, got {value!r}")
            elif not number or value < 1:
                raise ValueError(f"{name} is a factor of 1 or more (22: 22 times fewer), got {value!r}")
            if not isinstance(value, int | float):  # NumPy's numbers do not go into JSON
                object.__setattr__(self, name, float(value))
        if self.flops is not None and self.timed:
            raise ValueError("give flops or a budget of time (faster, latency_ms), not both")

    @property
    def timed(self) -> bool:
        """Whether time is part of it."""
        return self.faster is not None or self.latency_ms is not None

    def params_of(self, model: nn.Module) -> float | None:
        """By which factor the parameters of `model` must fall to keep `params` and `bytes`; buffers do not shrink.

        Raises ValueError if they alone are more than the bytes allow.
        """
        if self.bytes is None:
            return self.params
        weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
        left = (weights + buffers) / self.bytes - buffers
        if left <= 0:
            raise ValueError(f"bytes={self.bytes:g} leaves less than the model's buffers alone, {buffers} bytes")
        size = weights / num_parameters(model)
        return max(self.params or 1.0, num_parameters(model) / (left / size))

    def without_bytes(self, model: nn.Module) -> "Budget":
        """The same for this network, with parameters in the place of bytes."""
        return replace(self, params=self.params_of(model), bytes=None)

    def of(self, model: nn.Module, milliseconds: float | None) -> "Budget":
        """The same for this network, which takes so long, in factors alone."""
        faster = None if milliseconds is None else self.faster_than(milliseconds)
        return Budget(params=self.params_of(model), flops=self.flops, faster=faster)

    def faster_than(self, milliseconds: float) -> float | None:
        """By which factor a network that takes so long must become faster."""
        if self.latency_ms is None:
            return self.faster
        return max(self.faster or 1.0, milliseconds / self.latency_ms)


@dataclass(frozen=True)
class Means:
    """How a budget may be reached. share: layers may share factors. refit: factors are fitted again behind compressed
    layers. rank_multiple: ranks are multiples of it, 1 or more. narrow: channels between two layers may go, too. tune:
    steps of training towards the dense network, 1 or more (none: None). memory: GB that images may take on their way
    through networks, beside these, what is known of their layers, and the images themselves (None: half of what is
    free). engine: where a budget of time is measured and holds: PyTorch as it is ("torch" or None), or ONNX Runtime on
    the CPU, in float32 ("onnx") or int8. Raises ValueError for other values."""

    share: bool = True
    refit: bool = True
    rank_multiple: Count = 1
    narrow: bool | None = None
    tune: Repeats | None = None
    memory: AboveZero | None = None
    engine: Engine | None = None

    def __post_init__(self) -> None:
        check_fields(self)
