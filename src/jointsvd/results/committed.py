"""Tables and pictures of all rows in a folder of studies, and RESULTS.md: what each shows in a line, then tables."""

import re
from pathlib import Path

import pandas as pd

from jointsvd.network.atomic import write_atomic
from jointsvd.results import benchmark_table, latency_table
from jointsvd.results.first_table import first_picture, has_first_rows
from jointsvd.results.rendered import write_picture
from jointsvd.results.report import render
from jointsvd.results.rows import read_rows

_FIRST = ("fashion_mnist_resnet34", "beyond", "beyond_recovery", "beyond_ablation", "benchmark", "benchmark_32")
_INTRODUCTION = """# Results
What was run, in a line each; the tables are below. `make tables` makes this page from the committed rows of each folder
here, and each row names its command, seed, versions and processor.
"""
_READING = """# Tables
"times fewer parameters" is the compression factor (CF), dense / compressed parameters; the same of FLOPs. Accuracy is
top-1 on the test images, ± the standard deviation over n seeds. "against" is the difference to the dense network, or to
plain SVD, trained by the same schedule, with its 95 % interval over the test images. What the paper prints is labelled
as the paper's, and stands beside ours also where data and schedule differ: the lines below each table say what ours
were measured under.
"""


def render_all(folder: Path) -> None:
    """Write table.md and the pictures of each study in `folder`, and RESULTS.md of them all."""
    for path in sorted(folder.glob("*/results.csv")):
        render(read_rows(path.parent), path.parent)
    for path in sorted(folder.glob("*/latency.csv")):
        latency_table.render(pd.read_csv(path), path.parent)
    for path in sorted(folder.glob("*/benchmark.csv")):
        benchmark_table.render(pd.read_csv(path), path.parent)
    if has_first_rows(folder):
        write_picture(folder / "first.png", first_picture(folder))
    write_atomic(folder / "RESULTS.md", results(folder))


def results(folder: Path) -> str:
    """RESULTS.md: the verdicts, what was not run with its command, and the tables."""
    verdicts, sections, missing = [], [], []
    for readme in sorted(folder.glob("*/README.md"), key=_place):
        text = readme.read_text().replace("](../", "](")  # links from here, one folder higher
        name = readme.parent.name
        title, claim, *_ = [*text.splitlines(), "", ""]
        title, table = title.removeprefix("# "), readme.parent / "table.md"
        if found := re.search(r"^\*\*Verdict\.\*\* (.+)$", text, re.MULTILINE):
            where = f"#{anchor(title)}" if table.exists() else name
            verdicts.append(f"- [{title}]({where}): {found[1]}")
        if table.exists():
            pictures = sorted(path.name for path in readme.parent.glob("*.png"))
            images = "\n\n".join(f"![{title}]({name}/{picture})" for picture in pictures)
            sections.append(f"## {title}\n{claim} ([{name}]({name}))\n\n{table.read_text()}\n{images}\n")
        elif "Not run here" in text:
            missing.append(f"- [{title}]({name}): `make reproduce-{name}`")
    todo = [
        "",
        "Not run here, but ready to run, with commands, costs and conditions in their folders:",
        "",
        *missing,
        "",
    ]
    return "\n".join([_INTRODUCTION, *verdicts, *(todo if missing else [""]), _READING, *sections])


def anchor(title: str) -> str:
    """The link to a heading on the same page, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _place(readme: Path) -> tuple[int, str]:
    name = readme.parent.name
    return (_FIRST.index(name) if name in _FIRST else len(_FIRST), name)
