"""What a user chooses for one run, as plain values."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from jointsvd.network.checked import FolderName, Seed, Whole, check_fields
from jointsvd.training.data import ImageData
from jointsvd.training.models import WITH_CIFAR_STEM
from jointsvd.training.schedule import Schedule


@dataclass(frozen=True)
class Model:
    """Which dense network: `name` of `source`, or what the function at the path `name` makes of `arguments` (source
    "python"). stem: "auto" is "cifar" up to 64 pixels where there is such a stem. pretrained: True, False, "auto" (if
    there are 1000 classes) or the name of weights. checkpoint: a state dict of the trained network. Raises
    ValueError for values of wrong types."""

    name: str
    source: str = "timm"
    stem: str = "auto"
    pretrained: bool | str = False
    checkpoint: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self, "model.")

    def architecture(self, data: ImageData) -> dict[str, Any]:
        """Arguments of `build_model` for images of `data`."""
        small = data.image_size <= 64 and self.name in WITH_CIFAR_STEM
        return {
            "name": self.name,
            "num_classes": data.num_classes,
            "in_channels": data.in_channels,
            "stem": ("cifar" if small else "imagenet") if self.stem == "auto" else self.stem,
            "source": self.source,
        } | ({"arguments": dict(self.arguments)} if self.source == "python" else {})

    def weights(self, data: ImageData) -> bool | str:
        """Of its source, that the network starts from."""
        return data.num_classes == 1000 if self.pretrained == "auto" else self.pretrained

    @property
    def values(self) -> dict[str, Any]:
        """What a network depends on; an option that is added later keeps old names."""
        values = asdict(self)
        return {key: value for key, value in values.items() if key != "arguments" or value}


@dataclass(frozen=True)
class Choices:
    """One run: its data, its dense network, its two schedules, and what becomes of the network.

    data_name: in rows and names. method: name and options of `plan_compression`; name "dense" or "budget" without.
    budget: arguments of `compress`, for the method "budget". trainer: options of pl.Trainer. logger: of W&B's, or
    nothing. command: what makes this run again. The other fields are those of conf/common.yaml.
    """

    name: FolderName
    dense_name: FolderName
    model: Model
    data: ImageData
    data_name: str
    method: Mapping[str, Any]
    baseline: Schedule
    finetune: Schedule
    trainer: Mapping[str, Any]
    budget: Mapping[str, Any] = field(default_factory=dict)
    logger: Mapping[str, Any] = field(default_factory=dict)
    output_dir: Path = Path("outputs")
    seed: Seed = 0
    baseline_seed: Seed = 0
    calibration_images: Whole = 0
    from_scratch: bool = False
    command: str = ""

    @property
    def architecture(self) -> dict[str, Any]:
        """Arguments of `build_model`."""
        return self.model.architecture(self.data)

    @property
    def pretrained(self) -> bool | str:
        """Weights of its source that the dense network starts from."""
        return self.model.weights(self.data)

    @property
    def values(self) -> dict[str, Any]:
        """All of them as plain values, for a log."""
        plain = {item.name: getattr(self, item.name) for item in fields(Choices) if item.name != "data"}
        plain |= {"output_dir": str(self.output_dir), "model": asdict(self.model), "data": self.data_name}
        plain["recipe"] = {phase: asdict(plain.pop(phase)) for phase in ("baseline", "finetune")}
        return plain
