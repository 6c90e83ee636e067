"""One list of dependencies, the pinned versions that were tested, and a core that needs few of them."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import torch
import yaml

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text()


def requirement_name(line):
    return re.match(r"[A-Za-z0-9_.-]+", line)[0].lower().replace("_", "-")


def test_one_list_of_dependencies():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *extras["onnx"], *extras["experiments"], *extras["dev"]]
    needed = [line for line in needed if not line.startswith("jointsvd[")]
    pins = (ROOT / "constraints.txt").read_text().split()
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.+]+", pin) for pin in pins)
    assert {requirement_name(line) for line in needed} <= {requirement_name(pin) for pin in pins}
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert environment == ["python=3.11", "pip", {"pip": ["-c constraints.txt", "-e .[dev]"]}]
    assert "-c constraints.txt -e '.[dev]'" in MAKEFILE


def test_the_tested_versions_are_the_pinned_ones():
    import pytorch_lightning
    import timm

    pins = dict(pin.split("==") for pin in (ROOT / "constraints.txt").read_text().split())
    for name, module in {"torch": torch, "timm": timm, "pytorch-lightning": pytorch_lightning}.items():
        assert module.__version__.split("+")[0] == pins[name]


def test_importing_jointsvd_needs_torch_and_safetensors_only():
    blocked = ["pytorch_lightning", "hydra", "omegaconf", "wandb", "timm", "torchvision", "pandas", "matplotlib"]
    blocked += ["sklearn", "torchmetrics", "rich", "plotly", "onnx", "onnxruntime"]
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked})); import jointsvd; print(sorted(jointsvd.__all__))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "apply_plan" in result.stdout, result.stderr


def test_evaluating_a_network_needs_no_onnx():
    code = (
        "import sys; sys.modules['onnxruntime'] = None; import jointsvd.commands.evaluate, jointsvd.commands.compress"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
