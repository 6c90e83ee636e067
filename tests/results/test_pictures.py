"""Pictures: what is compared is in colour and named at the end of its line, and no text covers another."""

from dataclasses import asdict

import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from jointsvd.results.accuracy_picture import picture
from jointsvd.results.pictures import COLORS, PALE, End, colors_of, label_ends, spread
from jointsvd.results.rows import summarize


def summary_of(rows):
    return summarize(pd.DataFrame([asdict(row) for row in rows]))


def texts(axes):
    return [text.get_text() for text in axes.texts]


@pytest.fixture
def methods(make_row):
    """Seven lines at two sizes, and the dense network."""
    others = [("svd", None), ("tucker2", None), ("rjsvd1", None), ("rjsvd2", None), ("ljsvd", None)]
    others += [("bijsvd", 0.5), ("bijsvd", 0.3)]
    rows = [
        make_row(method=method, left_share=share, config_id=f"{method}{share}{factor}", compression_factor=factor)
        for method, share in others
        for factor in (13.8, 21.7)
    ]
    return [*rows, make_row(method="dense", rank_rate=None, hid=None, config_id="7", compression_factor=1.0, top1=99.0)]


def test_each_line_is_named_at_its_end_and_the_dense_network_is_dashed(methods):
    (axes,) = picture(summary_of(methods)).axes
    names = {"SVD", "Tucker-2", "RJSVD-1", "RJSVD-2", "LJSVD", "Bi-JSVD_0.5", "Bi-JSVD_0.3"}
    assert set(texts(axes)) == names | {"dense 99.00 %"}
    assert axes.get_legend() is None
    dashed = [line for line in axes.lines if line.get_label() == "dense"]
    assert [line.get_ydata()[0] for line in dashed] == [99.0]
    colors = {line.get_label(): line.get_color() for line in axes.lines}
    assert colors["LJSVD"] == COLORS["LJSVD"]
    assert colors["RJSVD-2"] == colors["Bi-JSVD_0.3"] == PALE


def test_no_name_covers_another(methods):
    figure = picture(summary_of(methods))
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in figure.axes[0].texts]  # without the lines to them
    for index, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[index + 1 :])


def test_few_lines_are_all_in_colour(make_row):
    rows = [make_row(method="bijsvd", left_share=share, config_id=str(share)) for share in (0.3, 0.7)]
    (axes,) = picture(summary_of(rows)).axes
    assert PALE not in {line.get_color() for line in axes.lines}


def test_a_panel_for_each_schedule(make_row):
    rows = [make_row(schedule=f"{n} epochs", config_id=str(n)) for n in (1, 3)]
    assert [axes.get_title("left") for axes in picture(summary_of(rows)).axes] == ["after 1 epochs", "after 3 epochs"]


def test_a_sweep_of_the_left_share_is_drawn_against_it(make_row):
    rows = [
        make_row(method="bijsvd", left_share=p, iterations=30, rank_rate=rate, config_id=f"{p}{rate}")
        for p in (0.3, 0.5, 0.7)
        for rate in (0.04, 0.08)
    ]
    (axes,) = picture(summary_of(rows)).axes
    assert axes.get_xlabel() == "left share p"
    assert texts(axes) == ["rank rate 0.04", "rank rate 0.08"]


def test_budgets_are_one_line_whatever_they_ask_for(make_row):
    ours = {"method": "budget", "hid": None, "rank_rate": None, "share": True, "refit": True}
    rows = [make_row(**ours, budget_params=22, budget_flops=6, compression_factor=22, config_id="a")]
    rows += [make_row(**ours, budget_params=50, compression_factor=50, config_id="b")]
    (axes,) = picture(summary_of(rows)).axes
    assert texts(axes) == ["ours"]


def test_more_schedules_than_panels_are_a_row_each(make_row):
    settings = [(22.1, epochs) for epochs in range(18, 0, -1)] + [(50.0, epochs) for epochs in range(9, 0, -1)]
    rows = [
        make_row(schedule=f"{n} epochs", compression_factor=factor, top1=70 + n, config_id=f"{n}-{factor}")
        for factor, n in settings
    ]
    panels = picture(summary_of(rows)).axes
    titles = [f"{factor} times fewer parameters: LJSVD" for factor in (22, 50)]
    assert [axes.get_title("left") for axes in panels] == titles
    assert texts(panels[1]) == [f"{70 + n:.2f}" for n in range(1, 10)]
    assert [tick.get_text() for tick in panels[1].get_yticklabels()] == [f"after {n} epochs" for n in range(1, 10)]
    assert "triangles: below 82" in panels[1].get_xlabel()


def test_texts_are_moved_as_little_as_keeps_them_apart():
    assert spread([0.0, 1.0, 50.0], [10.0, 10.0, 10.0]) == [-4.5, 5.5, 50.0]
    assert spread([5.0], [10.0]) == [5.0]


def test_ends_far_from_one_another_do_not_move_one_another():
    axes = Figure(figsize=(8, 4)).subplots()
    axes.set(xlim=(0, 10), ylim=(0, 10))
    label_ends(axes, [End(1, 5, "a", "black"), End(9, 5, "b", "black")])
    assert [text.xyann for text in axes.texts] == [(8, 0), (8, 0)]


def test_methods_keep_their_colours():
    assert colors_of(["LJSVD", "ours", "ours-16"]) == [COLORS["LJSVD"], COLORS["ours"], COLORS["ours"]]
    first, other, again = colors_of(["mine", "yours", "mine"])
    assert first == again != other
