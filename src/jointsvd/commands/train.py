"""jointsvd train: one configuration in, one result row out; with -m a sweep of them."""

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from jointsvd.commands.config import CONF, read_settings
from jointsvd.experiment.hours import announce_hours
from jointsvd.experiment.run import run
from jointsvd.experiment.settings import Settings
from jointsvd.results.report import report
from jointsvd.training.devices import is_main_process
from jointsvd.training.trainer import quieten_lightning


@hydra.main(config_path=CONF, config_name="train", version_base="1.3")
def main(cfg: DictConfig) -> None:
    start(cfg)


def start(cfg: DictConfig) -> Settings:
    """Check the configuration, run it, and print the table of its folder."""
    quieten_lightning()
    alone = HydraConfig.get().mode == RunMode.RUN and is_main_process()
    try:
        settings = read_settings(cfg)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"nothing was run: {error}") from error
    if alone:
        announce_hours([settings])
    run(settings)
    if alone:
        report(settings.folder, settings.logger)
    return settings


if __name__ == "__main__":
    main()
