"""A folder of studies in, tables, pictures and one page out; and data files where they are."""

import shutil
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest

from jointsvd.results import shipped as shipped_module
from jointsvd.results.benchmark_table import picture as benchmark_picture
from jointsvd.results.benchmark_table import readable as benchmark_readable
from jointsvd.results.committed import anchor, render_all
from jointsvd.results.first_table import first_table
from jointsvd.results.latency_table import picture as latency_picture
from jointsvd.results.shipped import shipped

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def test_a_folder_of_ones_own(make_row, tmp_path):
    for name, title in (("mine", "My study: 2 rows"), ("todo", "Another")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "README.md").write_text(f"# {title}\nWhat it asks.\n\n**Verdict.** Good.\n")
    (tmp_path / "todo" / "README.md").write_text("# Another\nWhat it asks.\n\nNot run here.\n")
    rows = pd.DataFrame([asdict(make_row()), asdict(make_row(method="svd", config_id="5"))])
    rows.to_csv(tmp_path / "mine" / "results.csv", index=False)
    render_all(tmp_path)
    page = (tmp_path / "RESULTS.md").read_text()
    assert page.index("- [My study: 2 rows](#my-study-2-rows): Good.") < page.index("## My study: 2 rows")
    assert "- [Another](todo): `make reproduce-todo`" in page
    assert (tmp_path / "mine" / "table.md").read_text() in page
    assert "![My study: 2 rows](mine/accuracy.png)" in page
    assert (tmp_path / "mine" / "accuracy.png").exists()
    assert not (tmp_path / "first.png").exists()


def test_the_first_table_has_six_networks_below_the_dense_one():
    lines = [line.split("|")[1:-1] for line in first_table(EXPERIMENTS).splitlines()[2:]]
    methods = [line[0].strip() for line in lines]
    assert methods == ["dense", "SVD", "RJSVD-2", "LJSVD", "Bi-JSVD_0.5", "ours", "ours"]
    smaller = [float(line[1]) for line in lines]
    assert smaller[0] == 1
    assert smaller[5:] == [22.1, 50.0]
    assert all(float(line[3]) <= 93.95 for line in lines)


def test_headings_are_linked_as_github_does():
    assert anchor("Figure 6: latency on one core") == "figure-6-latency-on-one-core"
    assert anchor("Bi-JSVD_0.5, own/shared") == "bi-jsvd_05-ownshared"


def test_the_benchmark_in_words_and_in_a_panel_an_engine():
    rows = pd.read_csv(EXPERIMENTS / "benchmark" / "benchmark.csv")
    table = benchmark_readable(rows)
    cell = (table["network"] == "ours-16") & (table["engine"] == "onnx") & (table["threads"] == 1)
    line = table[cell & (table["images at once"] == 1)].iloc[0]
    assert (line["times faster"], line["times fewer FLOPs"], line["FLOPs realised"]) == ("10.92", "10.08", "1.08")
    panels = benchmark_picture(rows).axes
    assert [axes.get_title("left").split("\n")[0] for axes in panels] == list(rows["engine"].unique())
    assert all(len(axes.patches) == 5 for axes in panels)


def test_latency_has_a_panel_a_network():
    rows = pd.read_csv(EXPERIMENTS / "figure6" / "latency.csv")
    assert [axes.get_title("left").split(",")[0] for axes in latency_picture(rows).axes] == [
        "ResNet-18",
        "ResNet-34",
        "ResNet-50",
    ]


@pytest.mark.parametrize("name", ["conf", "experiments/paper"])
def test_data_files_are_found_in_a_checkout_and_in_a_wheel(name, tmp_path, monkeypatch):
    found = shipped(name)
    assert found.is_dir()
    package = tmp_path / "jointsvd"
    shutil.copytree(found, package / name)
    monkeypatch.setattr(shipped_module, "__file__", str(package / "results" / "shipped.py"))
    assert shipped(name) == package / name
