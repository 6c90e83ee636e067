"""python -m jointsvd.results.committed: tables and pictures of the committed rows, and experiments/RESULTS.md of them all."""

from pathlib import Path

import pandas as pd

from jointsvd.network.atomic import write_atomic
from jointsvd.results import benchmark_table, latency_table
from jointsvd.results.report import render

EXPERIMENTS = Path(__file__).parents[3] / "experiments"
_INTRODUCTION = """# Results
Made by `make tables` from the committed rows of each folder here; each row names its command, seed, versions and
processor. What the paper prints is labelled as the paper's, and stands beside ours also where data and schedule differ:
the sentence below each table says what ours were measured under. "drop" is against the dense control trained by the
same schedule, with 95 % intervals over the test images where the rows hold which images were right.
"""


def read(folder: Path) -> pd.DataFrame:
    """The committed rows of an experiment."""
    return pd.read_csv(folder / "results.csv", dtype={"config_id": str})


def results(folder: Path = EXPERIMENTS) -> str:
    """RESULTS.md: what was run, a section each, then what was not, with its command."""
    sections, missing = [], []
    for readme in sorted(folder.glob("*/README.md")):
        title, claim, *_ = readme.read_text().splitlines()
        title, name = title.removeprefix("# "), readme.parent.name
        table = readme.parent / "table.md"
        if table.exists():
            pictures = sorted(path.name for path in readme.parent.glob("*.png"))
            images = "\n\n".join(f"![{title}]({name}/{picture})" for picture in pictures)
            sections.append(f"## {title}\n{claim} ([{name}]({name}))\n\n{table.read_text()}\n{images}\n")
        elif "Not run here" in readme.read_text():
            missing.append(f"- [{title}]({name}): `make reproduce-{name}`")
    todo = "## Not run here\nReady to run, with commands, costs and conditions in their folders:\n\n" + "\n".join(
        missing
    )
    return "\n".join([_INTRODUCTION, *sections, todo]) + "\n"


def main() -> None:
    for path in sorted(EXPERIMENTS.glob("*/results.csv")):
        render(read(path.parent), path.parent)
    for path in sorted(EXPERIMENTS.glob("*/latency.csv")):
        latency_table.render(pd.read_csv(path), path.parent)
    for path in sorted(EXPERIMENTS.glob("*/benchmark.csv")):
        benchmark_table.render(pd.read_csv(path), path.parent)
    write_atomic(EXPERIMENTS / "RESULTS.md", results())
    print(f"Saved {EXPERIMENTS}/RESULTS.md, and table.md and picture of each experiment")


if __name__ == "__main__":
    main()
