"""What a compressed network may cost."""

import math
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Budget:
    """How small or fast a compressed network is to be; all that is given holds.

    params, flops, bytes, faster: times fewer parameters, FLOPs, bytes and milliseconds than the dense network, 1 or
    more. latency_ms: milliseconds of one image. Time is measured in PyTorch on the model's device; it and FLOPs exclude
    each other. Raises ValueError for values that say nothing, are out of range or exclude each other.
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
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if name == "latency_ms":
                if not number or value <= 0:
                    raise ValueError(f"latency_ms is a number of milliseconds above 0, got {value!r}")
            elif not number or value < 1:
                raise ValueError(f"{name} is a factor of 1 or more (22: 22 times fewer), got {value!r}")
        if self.flops is not None and (self.faster is not None or self.latency_ms is not None):
            raise ValueError("give flops or a budget of time (faster, latency_ms), not both")
