"""One schema: what is annotated is what is accepted."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest

from jointsvd.network.checked import AboveZero, Count, FolderName, Range, Seed, Share, check_arguments, check_fields

NAN, INF = math.nan, math.inf
FIELDS = {
    "count": (Count, [1, 10**30], [0, -1, 1.0, True, "1", None, NAN, [1]]),
    "seed": (Seed, [0, 2**32 - 1], [-1, 2**32, 10**12, 1.5]),
    "number": (AboveZero, [1, 0.5, np.float32(2)], [0, -1, NAN, INF, True, "abc", None, 10**400]),
    "share": (Share, [0, 1, 0.3], [-0.1, 1.1, NAN]),
    "decay": (Annotated[float, Range(0, 1, open="most")], [0, 0.99], [1, 2, NAN]),
    "flag": (bool, [True, False], [0, 1, "true", None]),
    "maybe": (Count | None, [None, 3], [0, "x", False]),
    "choice": (Literal["a", "b"], ["a"], ["c", None, 1, ["a"]]),
    "one": (Literal[1, "all"], [1, "all"], [True, 1.0, 2]),
    "words": (Sequence[str], [[], ["a"], ("a", "b")], ["ab", [1], None, {"a": 1}]),
    "pairs": (Sequence[tuple[int, Count]], [[[1, 2]], [(0, 1)]], [[[1, 0]], [[1]], [[1, 2, 3]], [1], 5]),
    "options": (Mapping[str, Any], [{}, {"a": None}], [{1: 2}, [], "a", None]),
    "name": (FolderName, ["a-b_c.d", "x=1,y"], ["../x", "a/b", "", ".", "..", "a\0b", "x" * 200, 5, None, "a b\n"]),
    "path": (Path, [Path("x")], ["x", None]),
    "anything": (Any, [None, 5, object()], []),
}


@pytest.mark.parametrize("name", FIELDS)
def test_values_are_what_their_annotations_say(name):
    hint, good, bad = FIELDS[name]
    holder = dataclass(type("Holder", (), {"__annotations__": {name: hint}}))
    for value in good:
        check_fields(holder(value))
    for value in bad:
        with pytest.raises(ValueError, match=rf"^where\.{name} must be .*, got ") as caught:
            check_fields(holder(value), "where.")
        assert len(str(caught.value)) < 400


def test_messages_say_the_range_alone_where_the_type_is_right():
    @dataclass
    class Holder:
        count: Count | None
        rate: AboveZero = 1.0

    with pytest.raises(ValueError, match=r"^count must be 1 or more, got 0$"):
        check_fields(Holder(0))
    with pytest.raises(ValueError, match=r"^count must be a whole number, 1 or more or null, got 'x'$"):
        check_fields(Holder("x"))
    with pytest.raises(ValueError, match=r"^rate must be positive, got -1$"):
        check_fields(Holder(1, -1))


def test_arguments_of_functions_and_classes():
    class Base:
        def __init__(self, size: Count, name: str = "x"):
            pass

    class Child(Base):
        pass

    def free(size: Count, **more: int) -> None:
        pass

    check_arguments(Child, {"size": 1})
    for values, message in [
        ({"size": 0}, r"data\.size must be 1 or more"),
        ({"size": 1, "name": 5}, r"data\.name must be text"),
        ({"color": 1}, r"data\.color is unknown; there are name, size"),
    ]:
        with pytest.raises(ValueError, match=message):
            check_arguments(Child, values, "data.")
    check_arguments(free, {"size": 1, "other": "x"})
