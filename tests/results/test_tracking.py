"""What W&B is told: where runs and their summary go."""

import pandas as pd
import pytest
import wandb
from matplotlib.figure import Figure

from jointsvd.results.rendered import write_picture
from jointsvd.results.tracking import log_run, log_summary, make_logger

OPTIONS = {"project": "here", "entity": "us", "group": "sweep"}


@pytest.fixture
def started(monkeypatch):
    """The arguments of every W&B run that begins; they are written offline."""
    arguments, init = [], wandb.init

    def remember(**given):
        arguments.append(given)
        return init(**given)

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(wandb, "init", remember)
    yield arguments
    wandb.finish()


def test_runs_go_to_the_entity_that_was_asked_for(started, tmp_path):
    log_run(OPTIONS, {"seed": 3}, tmp_path, {"top1": 90.0})
    assert {key: started[0][key] for key in OPTIONS} == OPTIONS


def test_the_summary_goes_where_its_runs_go(started, tmp_path):
    write_picture(tmp_path / "accuracy.png", Figure())
    log_summary(OPTIONS, tmp_path, pd.DataFrame({"method": ["SVD"]}), pd.DataFrame({"seed": [0]}))
    assert {key: started[0][key] for key in OPTIONS} == OPTIONS
    assert started[0]["name"] == "summary"


def test_a_run_holds_its_configuration(started, tmp_path):
    logger = make_logger(OPTIONS, {"model": {"name": "resnet34"}, "seed": 3}, tmp_path)
    assert logger.experiment.config["seed"] == 3
