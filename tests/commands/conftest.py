import sys
import warnings

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from jointsvd.commands.main import run


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

    yield call
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None
