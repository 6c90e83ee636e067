"""What the choices for a run mean: its plan, and the names and files of what it makes."""

from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from jointsvd.experiment.checks import check_run, planned
from jointsvd.experiment.choices import Choices
from jointsvd.network.plan import Plan
from jointsvd.results.rows import ROW_FILE, digest, file_sha256
from jointsvd.training.devices import resolve_precision
from jointsvd.training.schedule import Schedule

NETWORK_FILE = "network.safetensors"


@dataclass(frozen=True)
class Settings(Choices):
    """The `Choices` of a run that can work. plan: empty for the dense network; None for a budget, whose plan is made
    with the network. Raises ValueError for what cannot work, saying what to change."""

    plan: Plan | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        check_run(self)
        object.__setattr__(self, "plan", planned(self))

    @property
    def folder(self) -> Path:
        return self.output_dir / self.name

    @property
    def compresses(self) -> bool:
        """Whether this run is of anything but the dense network."""
        return self.plan is None or bool(self.plan.groups)

    @property
    def options(self) -> dict[str, Any]:
        """What the decomposition depends on; {} for the dense network."""
        return {**self.method, **(self.budget if self.plan is None else {})} if self.compresses else {}

    @property
    def calibration(self) -> dict[str, int]:
        """Number of calibration images and the seed that draws them; empty for a run without."""
        if not self.compresses or not self.calibration_images:
            return {}
        return {"calibration_images": self.calibration_images, "calibration_seed": self.seed}

    @cached_property
    def dense_id(self) -> str:
        """Names what the dense network depends on."""
        values = self._common | {"seed": self.baseline_seed}
        if self.model.checkpoint:
            values["checkpoint"] = file_sha256(self.model.checkpoint)
        else:
            values["schedule"] = _values(self.baseline)
        return digest(values)

    @property
    def _common(self) -> dict[str, Any]:
        """What every network here depends on."""
        where = ("accelerator", "devices", "strategy", "num_nodes")
        trainer = {key: value for key, value in self.trainer.items() if key not in where}
        precision = {"precision": resolve_precision(self.trainer)}
        return {"model": self.model.values, "data": self.data.fingerprint, "trainer": trainer | precision}

    @property
    def dense_file(self) -> Path:
        """Apart from the runs: all recipes that start from the same dense network share it."""
        return self.output_dir / "dense" / f"{self.dense_name}-{self.dense_id}" / NETWORK_FILE

    def trains_dense(self) -> bool:
        """Whether this run would have to train the dense network first."""
        ready = self.from_scratch or self.model.checkpoint or (self.pretrained and self.data.num_classes == 1000)
        return not ready and not self.dense_file.exists()

    @property
    def decomposed_file(self) -> Path:
        calibrated = digest({"decomposed": self._decomposed_id, **self.calibration})
        name = calibrated if self.calibration else self._decomposed_id
        return self.folder / "-".join([*self._method_words(), "raw", name]) / NETWORK_FILE

    @property
    def config_id(self) -> str:
        """Names what a row depends on, but for the seed."""
        return digest({"decomposed": self._decomposed_id, "schedule": _values(self.finetune)})

    @property
    def run_name(self) -> str:
        """The usual swept keys in words, and the config_id for the rest."""
        return "-".join([*self._method_words(), f"s{self.seed}", self.config_id])

    @property
    def run_folder(self) -> Path:
        return self.folder / self.run_name

    @property
    def row_file(self) -> Path:
        """There once the run is finished."""
        return self.run_folder / ROW_FILE

    @property
    def _decomposed_id(self) -> str:
        start = self._common if self.from_scratch else {"dense": self.dense_id}
        method = {key: value for key, value in self.options.items() if value is not None}
        calibration = {"calibration_images": self.calibration_images} if self.calibration else {}
        return digest({**start, "method": method, **calibration})

    def _method_words(self) -> list[str]:
        name = self.method["name"]
        model = [] if self.model.name in self.name else [self.model.name]
        if not self.compresses:
            return [*model, name]
        if self.plan is None:
            budgets = {key: self.budget.get(key) for key in ("params", "flops", "bytes", "faster", "latency_ms")}
            return [*model, name, *(f"{key}{factor:g}" for key, factor in budgets.items() if factor)]
        share = [f"p{self.method['left_share']:g}"] if "left_share" in self.method else []
        return [*model, name, f"r{self.method['rank_rate']:g}", *share]


def _values(schedule: Schedule) -> dict[str, Any]:
    """What training depends on, without what is off: an option that is added later keeps old names."""
    return {key: value for key, value in asdict(schedule).items() if value and key != "test_every"}
