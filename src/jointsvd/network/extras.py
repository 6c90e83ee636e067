"""Packages that the core does without."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Imports of the packages of an extra of pyproject.toml; if one is missing, the error names the extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        if "in the extra" in str(error) or str(error.name).startswith("jointsvd"):
            raise
        message = f"{error.name} is missing; it is in the extra '{name}': pip install 'jointsvd[{name}]'"
        raise ModuleNotFoundError(message, name=error.name) from error
