"""Rows, their summary, the table beside the paper, the picture, and the same rows in W&B's files."""

import json
from dataclasses import asdict, fields

import pandas as pd
import pytest
from matplotlib.figure import Figure

from jointsvd.results import paper
from jointsvd.results.report import picture, report
from jointsvd.results.rows import Row, collect, summarize
from jointsvd.results.table import conditions, readable, schedule_words


def make_row(**changes):
    values = {
        "model": "resnet34", "data": "digits", "image_size": 16, "num_train": 1437, "num_test": 360, "method": "ljsvd",
        "rank_rate": 0.04, "left_share": None, "own_per_shared": None, "hid": "decompose", "layers": None,
        "budget_params": None, "budget_flops": None, "budget_bytes": None, "share": None,
        "refit": None, "calibration_images": None, "iterations": None, "from_scratch": False, "seed": 0,
        "num_parameters": 981_002, "compression_factor": 21.69, "compression_factor_paper": 22.06,
        "flops": 136_000_000, "raw_top1": 70.0, "raw_top5": 95.0, "top1": 96.0, "top5": 100.0, "best_top1": 97.0,
        "baseline_top1": 97.5, "baseline_sha256": "ab" * 32, "baseline_schedule": "12 epochs", "schedule": "3 epochs",
        "precision": "bf16-mixed", "decompose_seconds": 1.0, "train_seconds": 9.0, "config_id": "c0ffee00",
        "command": "python -m jointsvd.experiment.run", "date": "2026-01-01T00:00:00+00:00", "versions": "torch=2",
        "processor": "a processor, 2 threads", "raw_correct": None, "correct": None,
    }  # fmt: skip
    return Row(**values | changes)


ROWS = [
    make_row(),
    make_row(seed=1, top1=98.0, best_top1=98.5),
    make_row(method="svd", config_id="5"),
    make_row(method="bijsvd", left_share=0.3, iterations=30, rank_rate=0.08, config_id="6", raw_top1=60.0),
    make_row(method="dense", rank_rate=None, hid=None, config_id="7", compression_factor=1.0),
]


@pytest.fixture
def folder(tmp_path):
    for row in ROWS:
        row.write(tmp_path / f"{row.method}-{row.config_id}-s{row.seed}")
    return tmp_path


def test_rows_are_collected_whole(folder):
    (folder / "unfinished-run").mkdir()
    table = collect(folder)
    assert len(table) == len(ROWS)
    saved = pd.read_csv(folder / "results.csv")
    assert list(saved) == [field.name for field in fields(Row)]
    kept = saved[(saved["method"] == "ljsvd") & (saved["seed"] == 1)].iloc[0]
    assert (kept["top1"], kept["num_parameters"], kept["processor"]) == (98.0, 981_002, "a processor, 2 threads")


def test_rows_without_a_column_that_came_later_are_read(folder):
    path = folder / "svd-5-s0" / "row.json"
    path.write_text(
        json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "budget_faster"})
    )
    assert collect(folder)["budget_faster"].isna().all()


def test_what_a_time_budget_asked_for_stands_in_the_table():
    ours = {"method": "budget", "hid": None, "rank_rate": None, "share": True, "refit": True}
    rows = [make_row(**ours, budget_faster=3, config_id="a"), make_row(**ours, budget_latency_ms=1.5, config_id="b")]
    rows += [make_row(**ours, budget_params=22, rank_multiple=16, config_id="c")]
    table = readable(pd.DataFrame([asdict(row) for row in rows]))
    assert set(table["method"]) == {"ours, 3 times faster", "ours, 1.5 ms", "ours, ranks of 16"}


def test_rows_of_another_release_are_not_mixed_in(folder):
    (folder / "old").mkdir()
    (folder / "old" / "row.json").write_text(json.dumps({"model": "x"}))
    with pytest.raises(ValueError, match="other columns"):
        collect(folder)
    with pytest.raises(ValueError, match="no finished runs"):
        collect(folder / "old" / "empty-parent")


def test_summary_over_seeds():
    summary = summarize(pd.DataFrame([asdict(row) for row in ROWS]))
    assert list(summary["method"]) == ["dense", "svd", "ljsvd", "bijsvd"]
    line = summary[summary["method"] == "ljsvd"].iloc[0]
    assert (line["n"], line["top1_mean"], line["best_top1"]) == (2, 97.0, 98.5)
    assert line["top1_std"] == pytest.approx(2**0.5)  # of n - 1


def test_the_paper_is_looked_up_by_network_method_rate_and_data():
    row = asdict(make_row())
    assert paper.printed(row) == paper.Printed(93.97, 15.96, 22.07)
    assert paper.printed(row | {"method": "svd", "rank_rate": 0.08}) == paper.Printed(93.95, 49.34, 13.92)
    assert paper.printed(row | {"method": "bijsvd", "left_share": 0.5, "iterations": 30}).top1 == 93.69
    assert paper.printed(row | {"data": "cifar100", "model": "resnet50"}).compression_factor == 6.21
    assert paper.printed(row | {"data": "imagenet"}).top1 == 60.55
    assert paper.printed(row | {"method": "dense", "rank_rate": None}).top1 == 95.11
    for other in (
        {"rank_rate": 0.05},
        {"hid": "dense"},
        {"layers": "layer1.*"},
        {"model": "vgg16_bn"},
        {"left_share": 0.4, "method": "bijsvd", "iterations": 30},
    ):
        assert paper.printed(row | other) is None
    assert paper.printed(row | {"method": "nc_ctd", "own_per_shared": 0.5}).raw_top1 == 19.12
    scratch = row | {"from_scratch": True, "method": "svd"}
    assert paper.printed(scratch) == paper.Printed(92.90, None, 22.07)
    assert paper.printed(scratch | {"data": "imagenet"}) is None
    table3 = row | {"method": "bijsvd", "left_share": 0.9, "iterations": 70, "rank_rate": 0.08}
    assert paper.printed(table3) == paper.Printed(None, 44.13, 13.92)
    for cell in pd.read_csv(paper.FOLDER / "table3_bijsvd_k.csv").itertuples():
        found = paper.printed(table3 | {"left_share": cell.p, "iterations": cell.K})
        assert found.compression_factor == 13.92
        assert cell.K == 30 or found.raw_top1 == cell.raw_top1
    assert paper.printed(table3 | {"iterations": 30}).raw_top1 == 44.01
    for share, method in ((0, "rjsvd2"), (1, "ljsvd")):  # figures 3 and 4
        end = scratch | {"method": "bijsvd", "left_share": share, "iterations": 30}
        assert paper.printed(end) == paper.printed(scratch | {"method": method})
    figure5 = row | {"hid": "dense", "data": "cifar100", "rank_rate": 0.1}
    assert paper.printed(figure5) == paper.Printed(76.62, None, 6.53)
    assert paper.printed(figure5 | {"method": "rjsvd2", "rank_rate": 1.0}) == paper.Printed(76.97, None, 1.43)
    assert (paper.dataset("fashion_mnist"), paper.dataset("cifar100")) == ("CIFAR-10", "CIFAR-100")


def test_the_table_says_everything(folder):
    table = report(folder, {})
    line = table[table["method"] == "LJSVD"].iloc[0].to_dict()
    assert line == {
        "method": "LJSVD", "rank_rate": "0.04", "CF": "21.69", "CF, paper's count": "22.06", "CF it prints": "22.07",
        "parameters": "981,002", "FLOPs": "1.36e8", "raw top-1 %": "70.00", "top-1 %": "97.00 ± 1.41 (n=2)",
        "best %": "98.50", "paper's, CIFAR-10 %": "93.97", "drop (95 %)": "+1.00", "drop - paper's": "+2.14",
    }  # fmt: skip
    assert set(table["method"]) == {"dense (control)", "SVD", "LJSVD", "Bi-JSVD_0.3"}
    text = (folder / "table.md").read_text()
    assert "97.00 ± 1.41 (n=2)" in text
    for condition in ("digits", "1,437 training", "360 test", "12 epochs", "3 epochs", "seeds 0, 1", "a processor"):
        assert condition in text
    assert (folder / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_what_differs_within_a_table_becomes_a_column_and_raw_tables_are_raw():
    rows = pd.DataFrame([asdict(make_row()), asdict(make_row(schedule="9 epochs", config_id="8"))])
    assert set(readable(rows)["schedule"]) == {"3 epochs", "9 epochs"}
    rows = pd.DataFrame([asdict(make_row(schedule="no training"))])
    table = readable(rows)
    assert "top-1 %" not in table
    assert table["paper's raw, CIFAR-10 %"].item() == "15.96"


def test_a_sweep_of_the_left_share_is_drawn_against_it():
    rows = pd.DataFrame(
        [
            asdict(make_row(method="bijsvd", left_share=p, iterations=30, rank_rate=rate, config_id=f"{p}{rate}"))
            for p in (0.3, 0.5, 0.7)
            for rate in (0.04, 0.08)
        ]
    )
    (axes,) = picture(summarize(rows), conditions(rows)).axes
    assert axes.get_xlabel() == "left share p"
    assert axes.get_legend_handles_labels()[1] == ["rank_rate 0.04", "rank_rate 0.08"]


def test_the_picture_has_a_line_a_method_and_the_dense_network_dashed():
    rows = pd.DataFrame([asdict(row) for row in ROWS])
    figure = picture(summarize(rows), conditions(rows))
    assert isinstance(figure, Figure)
    _, labels = figure.axes[0].get_legend_handles_labels()
    assert set(labels) == {"SVD", "LJSVD", "Bi-JSVD_0.3", "dense (control)"}
    dashed = [line for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    assert [line.get_ydata()[0] for line in dashed] == [96.0]


def test_more_lines_than_can_be_told_apart_are_a_row_each():
    settings = [(22.1, epochs) for epochs in range(18, 0, -1)] + [(50.0, epochs) for epochs in range(9, 0, -1)]
    rows = [
        make_row(schedule=f"{n} epochs", compression_factor=factor, top1=70 + n, config_id=f"{n}-{factor}")
        for factor, n in settings
    ]
    rows = pd.DataFrame([asdict(row) for row in rows])
    panels = picture(summarize(rows), conditions(rows)).axes
    assert [axes.get_title("left") for axes in panels] == ["CF 22", "CF 50"]
    assert [text.get_text() for text in panels[1].texts] == [f"{70 + n:.2f}" for n in range(1, 10)]
    assert [tick.get_text() for tick in panels[1].get_yticklabels()] == [f"LJSVD, {n} epochs" for n in range(1, 10)]


def test_schedules_are_told_apart_in_few_words():
    plain, gentle = "1 epoch of 12,000 images, batch 128, SGD lr 0.02, one cycle", "60 epochs, batch 128"
    assert schedule_words([plain, gentle]) == {plain: "1 epoch of 12,000 images", gentle: "60 epochs"}
    slow = plain.replace("0.02", "0.005, EMA 0.95")
    assert schedule_words([plain, slow, "no training"]) == {
        plain: "1 epoch of 12,000 images, SGD lr 0.02",
        slow: "1 epoch of 12,000 images, SGD lr 0.005, EMA 0.95",
        "no training": "no training",
    }
