"""The wheel in fresh environments, in a folder that is not the checkout: the light core, and with the experiments.

An environment gets links to the packages that the wheel asks for, and to what those ask for, out of this one: it holds
what pip would install, without a download.
"""

import subprocess
import sys
import venv
from importlib.metadata import distribution, requires
from pathlib import Path

import pandas as pd
import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
COMPRESS = """
import torch
from jointsvd import compress, num_parameters
model = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(1152, 10))
result = compress(model, [torch.randn(16, 3, 8, 8)], params=2)
print(num_parameters(model) / num_parameters(result.model))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", folder, ROOT]
    subprocess.run(build, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def needed(name, extras=()):
    """All that pip would install for a package with extras: names in lower case, each with its extras."""
    found, todo = set(), [(name, tuple(extras))]
    while todo:
        package, wanted = todo.pop()
        if (package, wanted) in found:
            continue
        found.add((package, wanted))
        for line in requires(package) or []:
            requirement = Requirement(line)
            marker = requirement.marker
            if not marker or any(marker.evaluate({"extra": extra}) for extra in ("", *wanted)):
                todo.append((requirement.name.lower(), tuple(sorted(requirement.extras))))
    return {package for package, _ in found} - {name}


@pytest.fixture
def environment(tmp_path, wheel):
    """Makes the environment of some extras, and runs its programs in an empty folder."""

    def make(*extras):
        venv.create(tmp_path / "venv", symlinks=True)
        python = tmp_path / "venv" / "bin" / "python"
        (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
        for package in needed("jointsvd", extras):
            for file in distribution(package).files or []:
                top = file.parts[0]
                if top not in ("..", "__pycache__") and not (site / top).exists():
                    (site / top).symlink_to(distribution(package).locate_file(top))
        install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel]
        subprocess.run(install, check=True, capture_output=True)
        folder = tmp_path / "elsewhere"
        folder.mkdir()

        def run(program, *arguments):
            return subprocess.run([python.parent / program, *arguments], cwd=folder, capture_output=True, text=True)

        return run, folder

    return make


def test_the_light_core(environment):
    run, _ = environment()
    result = run("python", "-c", COMPRESS)
    assert float(result.stdout) >= 2, result.stderr
    result = run("jointsvd", "train")
    assert result.returncode == 1
    assert "it is in the extra 'experiments': pip install 'jointsvd[experiments]'" in result.stderr
    assert "Traceback" not in result.stderr
    result = run("python", "-c", "import jointsvd.deployment.export")
    assert result.stderr.splitlines()[-1].endswith("it is in the extra 'onnx': pip install 'jointsvd[onnx]'")
    assert run("jointsvd").returncode == 2
    assert "compress" in run("jointsvd", "--help").stdout


def test_the_experiments(environment):
    run, folder = environment("experiments")
    small = ["model=resnet20", "data.image_size=8", "recipe=smoke", "trainer.accelerator=cpu"]
    small += ["recipe.baseline.num_images=64", "recipe.finetune.num_images=64", "method.rank_rate=0.2"]
    result = run("jointsvd", "train", *small)
    assert result.returncode == 0, result.stderr
    rows = pd.read_csv(folder / "outputs" / "resnet20-digits-smoke" / "results.csv")
    assert rows["command"][0] == f"jointsvd train {' '.join(small)}"
    for command in (
        ("jointsvd", "latency"),
        ("python", "-m", "jointsvd.train"),
        ("python", "-m", "jointsvd", "export"),
    ):
        result = run(*command, "--cfg", "job")
        assert result.returncode == 0, result.stderr
