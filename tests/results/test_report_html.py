"""The page of a compression needs nothing but itself, and says what was done."""

import re
import sys

import pytest

from jointsvd.results.report_html import write_report

LINE = {
    "layers": ["layer1.conv1"], "choice": "alone", "rank": 7, "largest_rank": 30, "parameters": 1234,
    "dense_parameters": 9876, "flops": 100, "dense_flops": 900, "predicted_error": 1.5e-3, "reached_error": 1.25e-3,
}  # fmt: skip
REPORT = [
    LINE,
    LINE | {"layers": ["a.<b>odd</b>", "b.conv"], "choice": "left", "rank": 3},
    LINE | {"layers": ["stem"], "choice": "dense", "rank": None, "predicted_error": 0.0, "reached_error": 0.0},
]
TOTALS = {"dense_parameters": 21_280_970, "parameters": 962_596, "top1": 93.83, "dense_top1": 93.95}


@pytest.fixture
def page(tmp_path):
    def make(**options):
        write_report(tmp_path / "report.html", REPORT, **{"totals": TOTALS, "settings": {"params": 22.1}} | options)
        return (tmp_path / "report.html").read_text()

    return make


def without_scripts(text):
    return re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)


def test_the_page_is_self_contained(page):
    text = page()
    assert not re.search(r"""(src|href)\s*=\s*["']?\s*(https?:)?//""", without_scripts(text))
    assert not re.search(r"<script[^>]+src=", text)
    assert "plotly.js v" in text
    assert "@import" not in without_scripts(text)


def test_names_are_escaped(page):
    text = page(
        untouched=[{"name": "<i>x</i>", "class": "Conv2d", "parameters": 9, "share": 1.25, "reason": "grouped & small"}]
    )
    assert "9 (1.2 %)" in without_scripts(text)
    for name in (
        "layer1.conv1",
        "a.&lt;b&gt;odd&lt;/b&gt;",
        "b.conv",
        "stem",
        "&lt;i&gt;x&lt;/i&gt;",
        "grouped &amp; small",
    ):
        assert name in without_scripts(text)
    assert "<b>odd" not in text
    assert "<i>x" not in text


def test_totals_are_plain_numbers(page):
    text = without_scripts(page())
    for number in ("22.1 times", "21,280,970", "962,596", "93.83 %", "93.95 %"):
        assert number in text
    assert "FLOPs an image:" not in text  # not known, so not shown


def test_times_and_held_out_images_stand_with_the_totals(page):
    times = {"milliseconds": 30.0, "predicted_milliseconds": 9.5, "measured_milliseconds": 10.0}
    text = without_scripts(page(settings=times, held_out={"kl": 0.0123, "top1_agreement": 98.7, "predicted_kl": 0.01}))
    for number in ("3.0 times", "30 ms dense", "9.5 ms predicted", "10 ms measured", "98.70 %", "0.012 nats"):
        assert number in text


def test_who_shares_and_what_stayed_dense(page):
    text = without_scripts(page())
    assert "3 layers are now products of two factors, 2 of them" in text
    assert "Who shares with whom" in text
    assert "a rank costs more than it saves" in text


def test_without_plotly_one_sentence_says_how_to_get_it(page, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(ImportError, match=r"pip install 'jointsvd\[experiments\]'"):
        page()
