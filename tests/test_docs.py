"""What is written down is true: commands, tables, links, snippets, notebooks."""

import ast
import importlib
import importlib.util
import re
import shlex
import subprocess
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
from nbclient import NotebookClient

from jointsvd import apply_plan, num_parameters, plan_compression, save_compressed
from jointsvd.commands.main import COMMANDS
from jointsvd.results.committed import anchor, results
from jointsvd.results.first_table import first_table
from jointsvd.results.rows import read_rows
from jointsvd.results.table import conditions, readable
from jointsvd.training.models import build_model

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
EXPERIMENTS = sorted(path.parent for path in (ROOT / "experiments").glob("*/results.csv"))


def code_lines(text):
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", text, re.DOTALL)
    return [line.split(" #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


LINES = sorted(
    {line for path in ROOT.glob("**/*.md") if ".venv" not in path.parts for line in code_lines(path.read_text())}
)


@pytest.mark.parametrize("command", [line for line in LINES if line.startswith("make ")])
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


@pytest.mark.parametrize("command", [line for line in LINES if re.match(r"(srun )?jointsvd ", line)])
def test_our_commands_compose(command, configure):
    words = shlex.split(command.removeprefix("srun "))
    name, overrides = words[1], [word for word in words[2:] if word != "-m"]
    assert name in COMMANDS
    if name != "tables":  # which takes a folder
        configure(*(override if "{" in override else override.split(",")[0] for override in overrides), name=name)


def test_no_page_calls_a_command_by_an_old_name():
    for path in [*ROOT.glob("*.md"), *ROOT.glob("experiments/**/*.md")]:
        if path.name not in ("CHANGELOG.md", "RESULTS.md"):
            assert "python -m jointsvd" not in path.read_text(), path


def test_every_target_is_in_the_help():
    result = subprocess.run(["make", "-C", ROOT, "help"], capture_output=True, text=True, check=True)
    targets = set(re.findall(r"^([a-z][a-z0-9%-]*):", MAKEFILE, re.MULTILINE))
    assert all(f"{target} " in result.stdout for target in targets)


@pytest.mark.parametrize("folder", EXPERIMENTS, ids=lambda folder: folder.name)
def test_committed_tables_are_those_of_the_committed_rows(folder):
    rows = read_rows(folder)
    table = readable(rows).to_markdown(index=False, disable_numparse=True)
    assert (folder / "table.md").read_text() == f"{table}\n\n{conditions(rows)}\n"
    assert rows["command"].str.match(r"(python -m jointsvd\.|jointsvd )train ").all()


def test_the_results_page_is_made_of_the_committed_tables():
    assert (ROOT / "experiments" / "RESULTS.md").read_text() == results(ROOT / "experiments")


@pytest.mark.parametrize("table", sorted(ROOT.glob("experiments/*/table.md")), ids=lambda path: path.parent.name)
def test_each_table_has_a_verdict_with_its_own_numbers(table):
    (verdict,) = re.findall(r"^\*\*Verdict\.\*\* (.+)$", (table.parent / "README.md").read_text(), re.MULTILINE)
    assert set(re.findall(r"\d+\.\d\d", verdict)) <= set(re.findall(r"\d+\.\d\d", table.read_text()))


def test_the_links_of_the_results_page_lead_to_its_headings():
    page = (ROOT / "experiments" / "RESULTS.md").read_text()
    headings = {anchor(title) for title in re.findall(r"^#+ (.+)$", page, re.MULTILINE)}
    links = set(re.findall(r"\]\(#(.+?)\)", page))
    assert len(links) == len(list(ROOT.glob("experiments/*/table.md")))
    assert links <= headings


def test_every_study_is_in_the_list_of_studies():
    page = (ROOT / "experiments" / "README.md").read_text()
    for readme in ROOT.glob("experiments/*/README.md"):
        assert f"]({readme.parent.name})" in page


def test_links_lead_somewhere():
    for path in [*ROOT.glob("*.md"), *ROOT.glob("experiments/**/*.md")]:
        for link in re.findall(r"\]\((?!https?:|#)(.+?)\)", path.read_text()):
            assert (path.parent / link).exists(), f"{path}: {link}"


def test_the_readme_is_short_and_its_first_table_is_that_of_the_committed_rows():
    assert len(README.splitlines()) <= 150
    assert first_table(ROOT / "experiments") in README
    tucker = readable(read_rows(ROOT / "experiments" / "fashion_mnist_resnet34")).query("method == 'Tucker-2'").iloc[0]
    assert f"Tucker-2, {tucker['accuracy after training, %'].split()[0]} %" in README


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


@pytest.mark.parametrize("study", ["real_network", "layer_times", "ways_to_factor", "narrowing", "time_budgets"])
def test_the_table_of_a_study_with_a_script_is_that_of_its_rows(study):
    folder = ROOT / "experiments" / study
    spec = importlib.util.spec_from_file_location("measure", folder / "measure.py")
    measure = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(measure)
    table = measure.readable(measure.known()).to_markdown(index=False, disable_numparse=True)
    assert (folder / "table.md").read_text() == f"{table}\n"


def test_there_are_results():
    assert len(EXPERIMENTS) >= 2


def snippet(word):
    """The Python of the README that has this word."""
    (found,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if word in block]
    return found


def test_load_and_predict_as_in_the_readme(tmp_path, monkeypatch):
    code = snippet("load_network")
    dense = build_model("resnet34", num_classes=10, in_channels=1)
    plan = plan_compression(dense, "ljsvd", rank_rate=0.04)
    path = tmp_path / re.search(r'load_network\("(.*?)"\)', code)[1]
    architecture = '{"name": "resnet34", "num_classes": 10, "in_channels": 1}'
    save_compressed(path, apply_plan(dense, plan), plan, metadata={"architecture": architecture})
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    assert names["digits"].shape == (5,)


def test_the_paper_as_in_the_readme():
    names = {}
    exec(snippet("plan_compression").replace("resnet34", "resnet18"), names)
    assert names["small"](torch.zeros(1, 3, 224, 224)).shape == (1, 1000)


def test_a_budget_as_in_the_readme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(snippet("build_model("), names)
    assert num_parameters(names["dense"]) / num_parameters(names["result"].model) >= 5
    assert (tmp_path / "small.safetensors").exists()
    exec(snippet("import prepare"), names)
    assert names["ready"].report


def test_the_first_lines_of_the_readme():
    dense = build_model("resnet20", num_classes=10)
    names = {"model": dense, "images": [torch.randn(16, 3, 16, 16)]}
    exec(snippet("params=22"), names)
    assert num_parameters(dense) / num_parameters(names["small"]) >= 22


@pytest.mark.parametrize("path", sorted(ROOT.glob("experiments/*/*.py")), ids=lambda path: path.stem)
def test_the_scripts_of_the_studies_import_what_there_is(path):
    imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    ours = [(node.module, name.name) for node in imports for name in node.names if node.module.startswith("jointsvd")]
    assert all(hasattr(importlib.import_module(module), name) for module, name in ours)
    assert ours


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
