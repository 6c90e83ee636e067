"""What is written down is true: commands, tables, dependencies, the notebook."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
import yaml
from nbclient import NotebookClient

from jointsvd import compress_model, num_parameters, plan_compression, save_compressed
from jointsvd.results.committed import read, results
from jointsvd.results.table import conditions, readable
from jointsvd.training.models import build_model

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
EXPERIMENTS = sorted(path.parent for path in (ROOT / "experiments").glob("*/results.csv"))


def code_lines(text):
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", text, re.DOTALL)
    return [line.split(" #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


COMMANDS = sorted(
    {line for path in ROOT.glob("**/*.md") if ".venv" not in path.parts for line in code_lines(path.read_text())}
)


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("make ")])
def test_make_commands_exist(command):
    _, target, *variables = shlex.split(command)
    for variable in variables:
        assert re.search(rf"^{variable.split('=')[0]} \?=", MAKEFILE, re.MULTILINE), variable
    result = subprocess.run(["make", "-n", "-C", ROOT, target, *variables], capture_output=True, text=True, check=True)
    assert "$" not in result.stdout.replace("$part", "")


def test_every_experiment_has_its_folder_with_the_command():
    for path in (ROOT / "conf" / "experiment").glob("*.yaml"):
        name = path.name.split(".")[0]
        if name != "reproduce_resnet34":
            assert f"make reproduce-{name}" in (ROOT / "experiments" / name / "README.md").read_text()


@pytest.mark.parametrize("command", [line for line in COMMANDS if "python -m jointsvd." in line])
def test_python_commands_compose(command, configure):
    words = shlex.split(command)
    module, overrides = words[2].removeprefix("jointsvd."), [word for word in words[3:] if word != "-m"]
    assert (ROOT / "src" / "jointsvd" / f"{module}.py").exists()
    configure(*(override if "{" in override else override.split(",")[0] for override in overrides), name=module)


def test_every_target_is_in_the_help():
    result = subprocess.run(["make", "-C", ROOT, "help"], capture_output=True, text=True, check=True)
    targets = set(re.findall(r"^([a-z][a-z0-9%-]*):", MAKEFILE, re.MULTILINE))
    assert all(f"{target} " in result.stdout for target in targets)


@pytest.mark.parametrize("folder", EXPERIMENTS, ids=lambda folder: folder.name)
def test_committed_tables_are_those_of_the_committed_rows(folder):
    rows = read(folder)
    table = readable(rows).to_markdown(index=False, disable_numparse=True)
    assert (folder / "table.md").read_text() == f"{table}\n\n{conditions(rows)}\n"
    assert (folder / "README.md").exists()
    assert rows["command"].str.startswith("python -m jointsvd.experiment.run").all()


def test_the_results_page_is_made_of_the_committed_tables():
    assert (ROOT / "experiments" / "RESULTS.md").read_text() == results()


@pytest.mark.parametrize("name", ["fashion_mnist_resnet34", "beyond"])
def test_the_readme_shows_the_tables_as_committed(name):
    table, _, note = (ROOT / "experiments" / name / "table.md").read_text().rpartition("\n\n")
    assert table in README
    assert note.strip() in README.replace("\n", " ")


def table_below(text, sentence):
    """The cells of the first table behind a sentence, without its head."""
    table = next(block for block in text[text.index(sentence) :].split("\n\n") if block.startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_the_four_corners_are_those_of_the_committed_rows():
    rows = pd.read_csv(ROOT / "experiments" / "benchmark" / "benchmark.csv")
    rows = rows[(rows["batch_size"] == 1) & (rows["threads"] == 1)].set_index(["network", "engine"])
    dense = rows.loc["dense", "onnx"]
    corners = table_below(README, "Four corners")
    assert len(corners) == 6
    for network, numbers, *shown in corners:
        row = rows.loc[network, {"float32": "onnx", "int8": "int8"}[numbers]]
        faster, smaller = (dense[name] / row[name] for name in ("milliseconds", "file_bytes"))
        values = (row["top1"], row["milliseconds"], row["file_bytes"] / 1e6)
        expected = [f"{value:.2f}" for value in values]
        assert shown == [*expected[:2], f"{faster:.1f}", expected[2], f"{smaller:.1f}"]


def test_the_peers_are_those_of_the_committed_rows():
    rows = pd.read_csv(ROOT / "experiments" / "speed" / "peers.csv")
    shown = table_below((ROOT / "experiments" / "speed" / "README.md").read_text(), "(peers.csv)")
    dense = rows.iloc[0]
    for cells, row in zip(shown, rows.to_dict("records"), strict=True):
        fewer = [dense[name] / row[name] for name in ("num_parameters", "flops")]
        values = [*fewer, row["raw_top1"], row["top1"], row["milliseconds"], row["file_bytes"] / 1e6]
        assert cells == [row["network"], row["engine"], *(f"{value:.2f}" for value in values)]


def test_there_are_results():
    assert len(EXPERIMENTS) >= 2


def test_load_and_predict_as_in_the_readme(tmp_path, monkeypatch):
    (snippet,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "load_network" in block]
    dense = build_model("resnet34", num_classes=10, in_channels=1)
    plan = plan_compression(dense, "ljsvd", rank_rate=0.04)
    path = tmp_path / re.search(r'load_network\("(.*?)"\)', snippet)[1]
    architecture = '{"name": "resnet34", "num_classes": 10, "in_channels": 1}'
    save_compressed(path, compress_model(dense, plan), plan, metadata={"architecture": architecture})
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(snippet, names)
    assert names["digits"].shape == (5,)


def test_compression_as_in_the_readme():
    (snippet,) = [
        block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "plan_compression" in block
    ]
    names = {}
    exec(snippet.replace("resnet34", "resnet18"), names)
    assert names["small"](torch.zeros(1, 3, 224, 224)).shape == (1, 1000)


def test_a_budget_as_in_the_readme():
    (snippet,) = [
        block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "import compress," in block
    ]
    names = {}
    exec(snippet, names)
    assert num_parameters(names["dense"]) / num_parameters(names["result"].model) >= 5
    (snippet,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "import prepare" in block]
    exec(snippet, names)
    assert names["ready"].report


def requirement_name(line):
    return re.match(r"[A-Za-z0-9_.-]+", line)[0].lower().replace("_", "-")


def test_one_list_of_dependencies():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = project["dependencies"] + project["optional-dependencies"]["dev"]
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
    blocked += ["sklearn", "torchmetrics", "rich"]
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked})); import jointsvd; print(sorted(jointsvd.__all__))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "compress_model" in result.stdout, result.stderr


def shown(cell):
    """Kinds of output, without what a first run prints about caches it builds."""
    return [output.output_type for output in cell.outputs if output.output_type != "stream"]


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_run_and_are_committed_with_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    committed = list(map(shown, cells))
    assert any("display_data" in outputs or "execute_result" in outputs for outputs in committed)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": path.parent}}).execute()
    assert list(map(shown, cells)) == committed
