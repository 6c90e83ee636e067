import gc
import logging
import sys
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from PIL import Image

from jointsvd.commands.config import CONF
from jointsvd.commands.main import run


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def experiment_rows():
    """All committed rows."""
    paths = Path(__file__).parents[1].glob("experiments/*/results.csv")
    return pd.concat([pd.read_csv(path, dtype={"config_id": str}) for path in paths], ignore_index=True)


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


@pytest.fixture
def folders(tmp_path):
    """A folder of images in ImageNet's layout: three classes, five images each for training, two for testing."""
    random = np.random.default_rng(0)
    for split, num in (("train", 5), ("val", 2)):
        for name in ("cat", "dog", "fox"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(num):
                size = (40 + 3 * i, 50)
                Image.fromarray(random.integers(0, 256, (*size, 3)).astype(np.uint8)).save(folder / f"{i}.jpeg")
    return tmp_path


def _megabytes(key):
    """Memory of this process, "VmRSS" now or "VmHWM" at most since it was forgotten."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024


@contextmanager
def _measured():
    """Takes the CPU seconds and the megabytes of what runs inside; memory that it gives back counts."""
    Path("/proc/self/clear_refs").write_text("5")  # forgets the most
    gc.freeze()  # what all tests before have left is not searched for garbage at its cost
    before, start, found = _megabytes("VmRSS"), time.process_time(), {}
    try:
        yield found
    finally:
        found["seconds"] = time.process_time() - start
        found["megabytes"] = _megabytes("VmHWM") - before
        gc.unfreeze()


@pytest.fixture
def measured():
    return _measured


@pytest.fixture
def refused():
    """Who is refused is refused with one sentence, quickly, and before much memory is taken."""

    @contextmanager
    def check(match="", *, seconds=1.0, megabytes=200):
        with _measured() as cost, pytest.raises(ValueError, match=match) as caught:
            yield
        assert cost["seconds"] <= seconds, caught.value
        assert cost["megabytes"] <= megabytes, caught.value
        assert "Traceback" not in str(caught.value)
        assert len(str(caught.value)) < 2000

    return check


@pytest.fixture
def command(monkeypatch, capsys):
    """A command as the command line runs it, in this process; returns what it ends with (None, or its sentence), and
    what it printed."""

    def call(name, *overrides):
        GlobalHydra.instance().clear()
        HydraConfig.instance().cfg = None
        monkeypatch.setattr(sys, "argv", [f"jointsvd {name}", *overrides])
        code = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the module was imported before
            try:
                run(name)
            except SystemExit as error:
                code = error.code
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield call
    root.handlers[:] = handlers  # Hydra's write to what pytest has closed by then
    root.setLevel(level)
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None
