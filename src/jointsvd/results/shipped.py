"""Data files that come with the package: in a checkout at its top level, in a wheel inside the package."""

from pathlib import Path


def shipped(name: str) -> Path:
    """A file or folder such as "conf" or "experiments/paper"."""
    inside = Path(__file__).parents[1] / name
    return inside if inside.exists() else Path(__file__).parents[3] / name
