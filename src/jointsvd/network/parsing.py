"""JSON that others wrote."""

import json
from typing import Any


def parse_json(text: str, what: str) -> Any:
    """The value that `text` holds. Raises ValueError, with `what` in its message, for what is no JSON, or is nested
    too deeply to read."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} is no readable JSON: {error}") from error
