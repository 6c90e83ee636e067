"""Hydra's configurations as the plain values that the rest of the package takes.

What a function has a default for is written there alone: configurations inherit it through the nodes stored here.
"""

import inspect
import shlex
from collections.abc import Callable
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from jointsvd.compression.budget import Budget, Means
from jointsvd.experiment.choices import Choices, Model
from jointsvd.experiment.settings import Settings
from jointsvd.network.checked import check_arguments, check_fields
from jointsvd.network.rules import plan_compression
from jointsvd.network.surgery import apply_plan
from jointsvd.results.shipped import shipped
from jointsvd.training.data import ImageData
from jointsvd.training.schedule import Schedule

Options = TypeVar("Options")
CONF = str(shipped("conf"))


def read_settings(cfg: DictConfig) -> Settings:
    """The run that a configuration of train.yaml or compress.yaml describes. Raises ValueError and FileNotFoundError,
    saying what to change."""
    model = _model(cfg)
    data = read_data(cfg)
    names = {choice.name for choice in fields(Choices)} & set(cfg) - {"data", "model"}
    values = {name: plain(cfg[name]) for name in names}
    if not isinstance(values["output_dir"], str):
        raise ValueError(f"output_dir must be text, got {values['output_dir']!r}")
    for name in ("method", "trainer", "budget", "logger"):
        if not isinstance(values.setdefault(name, {}), dict):
            raise ValueError(f"{name} must be a mapping {{name: value}}, got {values[name]!r}")
    return Settings(
        **{**values, "output_dir": Path(values["output_dir"])},
        model=model,
        baseline=_schedule(cfg, "baseline"),
        finetune=_schedule(cfg, "finetune"),
        data=data,
        data_name=HydraConfig.get().runtime.choices["data"],
        command=command(),
    )


def options(cfg: DictConfig, kind: type[Options]) -> Options:
    """The values of a configuration that are fields of `kind`, a dataclass. Raises ValueError for one that is not what
    its annotation says."""
    made = kind(**{item.name: plain(cfg[item.name]) for item in fields(kind)})  # type: ignore[arg-type]
    check_fields(made)
    return made


def _schedule(cfg: DictConfig, phase: str) -> Schedule:
    values = plain(cfg.recipe[phase])
    if not isinstance(values, dict):
        raise ValueError(f"recipe.{phase} must be a mapping {{name: value}}, got {values!r}")
    if unknown := values.keys() - {option.name for option in fields(Schedule)}:
        raise ValueError(f"recipe.{phase}.{min(map(str, unknown))} is unknown")
    try:
        return Schedule(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"recipe.{phase}: {error}") from error


def _model(cfg: DictConfig) -> Model:
    """With `_target_` it is what that function makes of the keys that are not those of `Model`; the run is then named
    after the function."""
    if target := cfg.model.get("_target_"):
        cfg.model.name, cfg.model.source = target, "python"
    values = plain(cfg.model)
    known = {option.name for option in fields(Model)}
    arguments = {key: values.pop(key) for key in list(values) if key not in known and key != "_target_"}
    values.pop("_target_", None)
    if arguments and not target:
        raise ValueError(f"model: {', '.join(arguments)} are arguments of a function; name it by model._target_=...")
    return Model(**values, arguments=arguments)


def read_architecture(cfg: DictConfig, data: ImageData) -> dict[str, Any]:
    """Arguments of `build_model` for the network that a configuration names."""
    return _model(cfg).architecture(data)


def read_data(cfg: DictConfig) -> ImageData:
    """The data of a configuration, read once for all jobs of a sweep.

    Raises FileNotFoundError, saying how to get it, if it is not there, and ValueError for a value that is missing.
    """
    try:
        return _read_data(OmegaConf.to_yaml(cfg.data, resolve=True))
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError | FileNotFoundError):
            raise error.__cause__ from error
        raise ValueError(f"data: {error}") from error


@cache
def _read_data(text: str) -> ImageData:
    node = OmegaConf.create(text)
    if missing := OmegaConf.missing_keys(node):
        raise ValueError(f"set {' and '.join(f'data.{key}' for key in sorted(missing))}")
    values = plain(node)
    try:
        kind = get_object(values.pop("_target_"))
    except Exception as error:  # whatever an import may raise
        raise ValueError(f"data._target_ names nothing that can be imported: {error}") from error
    if isinstance(kind, type) and not issubclass(kind, ImageData):
        raise ValueError(f"data._target_ must be an ImageData, got {kind.__name__}")
    if isinstance(kind, type) and kind.__module__.startswith("jointsvd."):
        check_arguments(kind, values, "data.")
    data = instantiate(node)
    if not isinstance(data, ImageData):
        raise ValueError(f"data._target_ must make an ImageData, got a {type(data).__name__}")
    data.setup("fit")
    if data.num_classes < 2:
        raise ValueError(f"the data has {data.num_classes} class; there is nothing to tell apart")
    return data


def plain(node: Any) -> Any:
    """A configuration node as plain values."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def command() -> str:
    """What makes this run again."""
    hydra = HydraConfig.get()
    return f"jointsvd {hydra.job.config_name} {shlex.join(hydra.overrides.task)}".strip()


def _defaults(function: Callable[..., Any], *names: str) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters
    return {name: parameters[name].default for name in names}


def _store_defaults() -> None:
    store = ConfigStore.instance().store
    planned = ("hid", "layers", "left_share", "own_per_shared")
    method = _defaults(plan_compression, *planned) | _defaults(apply_plan, "iterations")
    for name, default in method.items():
        store(group="method", name=f"_{name}", node={name: default})
    budget = {option.name: option.default for option in (*fields(Budget), *fields(Means))}
    store(group="method", name="_compress", package="budget", node=budget)
    off = {option.name: option.default for option in fields(Schedule) if option.default is not MISSING}
    store(group="recipe", name="_schedule", node={"baseline": off, "finetune": dict(off)})
    own = {option.name: option.default for option in fields(Model) if option.default is not MISSING}
    store(group="model", name="_model", node={"_target_": None, **own})
    common = {choice.name: choice.default for choice in fields(Choices) if type(choice.default) in (int, bool)}
    store(name="_choices", node={**common, "output_dir": str(Choices.output_dir)})


_store_defaults()
