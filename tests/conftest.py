import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from jointsvd.settings import CONF


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def configure():
    """Compose a configuration as the command line does."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(CONF, version_base="1.3"):

        def compose_and_set(*overrides, name="train"):
            cfg = compose(name, list(overrides), return_hydra_config=True)
            HydraConfig.instance().set_config(cfg)
            return cfg

        yield compose_and_set
    HydraConfig.instance().cfg = None
