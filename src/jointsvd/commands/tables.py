"""jointsvd tables: tables and pictures of committed rows again, and RESULTS.md of them all."""

import argparse
from pathlib import Path

from jointsvd.commands.sentence import in_one_sentence
from jointsvd.results.committed import render_all


def main() -> None:
    parser = argparse.ArgumentParser("jointsvd tables", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("experiments"), help="has a folder for each study")
    folder = parser.parse_args().folder
    if not folder.is_dir():
        raise SystemExit(f"no folder {folder}")
    with in_one_sentence():
        render_all(folder)


if __name__ == "__main__":
    main()
