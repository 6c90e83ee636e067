"""jointsvd train: one configuration in, one result row out; with -m a sweep of them."""

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from jointsvd.commands.config import CONF, read_settings
from jointsvd.commands.sentence import MISTAKES, in_one_sentence, sentence
from jointsvd.experiment.hours import announce_hours
from jointsvd.experiment.run import run
from jointsvd.experiment.settings import Settings
from jointsvd.network.atomic import check_writable
from jointsvd.results.report import report
from jointsvd.training.devices import is_main_process
from jointsvd.training.trainer import check_trainer, quieten_lightning


@hydra.main(config_path=CONF, config_name="train", version_base="1.3")
def main(cfg: DictConfig) -> None:
    with in_one_sentence():
        start(cfg)


def start(cfg: DictConfig) -> Settings:
    """Check the configuration, run it, and print the table of its folder. Raises ValueError or OSError for what cannot
    work, before anything runs if that can be known."""
    quieten_lightning()
    alone = HydraConfig.get().mode == RunMode.RUN and is_main_process()
    try:
        settings = read_settings(cfg)
        if alone:
            check_trainer(settings.trainer)
            check_writable(settings.row_file)
            announce_hours([settings])
    except MISTAKES as error:
        raise ValueError(f"nothing was run: {sentence(error)}") from error
    run(settings)
    if alone:
        report(settings.folder, settings.logger)
    return settings


if __name__ == "__main__":
    main()
