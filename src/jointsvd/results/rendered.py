"""Tables and pictures as files, written whole or not at all."""

from io import BytesIO
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from jointsvd.network.atomic import write_atomic


def write_table(path: Path, table: pd.DataFrame, note: str = "") -> None:
    """The table in Markdown, its cells as they are, and the sentence that belongs below it."""
    text = table.to_markdown(index=False, disable_numparse=True)
    write_atomic(path, f"{text}\n\n{note}\n" if note else f"{text}\n")


def write_picture(path: Path, figure: Figure) -> None:
    """The figure as PNG."""
    image = BytesIO()
    figure.savefig(image, format="png", dpi=150)
    write_atomic(path, image.getvalue())
