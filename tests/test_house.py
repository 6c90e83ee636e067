"""Rooms import downwards only, in no circle; nothing imports the front door; Hydra stays in `commands`."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

SRC = Path(__file__).parents[1] / "src" / "jointsvd"
ROOMS = ["decomposition", "network", "deployment", "compression", "training", "results", "experiment", "commands"]


def test_the_house():
    imports = {}
    for path in SRC.glob("*/*.py"):
        found = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Import | ast.ImportFrom)]
        names = {getattr(node, "module", None) or alias.name for node in found for alias in node.names}
        imports[f"jointsvd.{path.parent.name}.{path.stem}"] = names
        below = {f"jointsvd.{room}" for room in ROOMS[: ROOMS.index(path.parent.name) + 1]}
        assert {".".join(n.split(".")[:2]) for n in names if n.split(".")[0] == "jointsvd"} <= below, path
        assert path.parent.name == "commands" or not {"hydra", "omegaconf"} & {n.split(".")[0] for n in names}, path
    TopologicalSorter({name: names & set(imports) for name, names in imports.items()}).prepare()  # CycleError: a circle
