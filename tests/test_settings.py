"""Settings check themselves: what fits, what does not, and the one line that says so."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import pytest
from msgspec import Meta

from rlpg.errors import RecipeError
from rlpg.settings import (
    Arguments,
    Count,
    Finite,
    Fraction,
    Layers,
    Natural,
    NonNegative,
    Positive,
    Schedule,
    Settings,
    Size,
    expected,
    from_text,
    one_of,
    scheduled,
    validated,
)

Mine = Annotated[str, one_of("a", "b", or_own="Class")]


@pytest.mark.parametrize(
    ("value", "kind", "taken"),
    [
        (1, Count, 1),
        (2**70, Natural, 2**70),
        (1, Positive, 1.0),
        (0, NonNegative, 0.0),
        (-0.0, Finite, -0.0),
        (1, Fraction, 1.0),
        ([1, 2], Layers, (1, 2)),
        ((), Layers, ()),
        ("none", Count | None, None),
        (None, Count | None, None),
        ("auto", Literal["auto"] | Fraction | None, "auto"),
        ("none", Literal["auto"] | Fraction | None, None),
        (True, Literal["auto"] | bool, True),
        ("none", str, "none"),
        ("none", Annotated[str, one_of("none", "some")], "none"),
        ("a", Mine, "a"),
        ("my_nets.torso:Torso", Mine, "my_nets.torso:Torso"),
        ("my_file:schedule", Schedule, "my_file:schedule"),
        ({"a": [1, 2.5, "x", True]}, Arguments, {"a": [1, 2.5, "x", True]}),
        ({"a": math.inf}, Arguments, {"a": math.inf}),
    ],
)  # fmt: skip
def test_what_fits(value: object, kind: Any, taken: object) -> None:
    found = validated("key", value, kind)
    assert repr(found) == repr(taken)  # == calls 1, 1.0 and True equal


@pytest.mark.parametrize(
    ("value", "kind", "words"),
    [
        (0, Count, "an integer >= 1, got 0"),
        (True, Count, "an integer >= 1, got True"),
        (64.0, Count, "an integer >= 1, got 64.0"),
        ("4", Count, "an integer >= 1, got '4'"),
        (0, Size, "an integer >= 1, got 0"),
        (10**9, Size, "an integer <= 65536, got 1000000000"),
        ([4, 10**9], Layers, "a list, each entry an integer <= 65536, got [4, 1000000000]"),
        ([4, 0], Layers, "a list, each entry an integer >= 1, got [4, 0]"),
        ([1] * 65, Layers, "at most 64 entries, got [1, 1,"),
        (math.nan, Finite, "a number that is finite, got nan"),
        (math.inf, Finite, "a number that is finite, got inf"),
        (math.inf, Positive, "a number > 0, got inf"),
        (10**400, Positive, "a number > 0, got 1000"),
        (0, Positive, "a number > 0, got 0"),
        (-1, NonNegative, "a number >= 0, got -1"),
        (1.5, Fraction, "a number in [0, 1], got 1.5"),
        (2, Annotated[float, Meta(gt=0, lt=1)], "a number in (0, 1), got 2"),
        (1, bool, "true or false, got 1"),
        ("x", Literal["auto"] | Fraction | None, "auto or a number in [0, 1] or none, got 'x'"),
        ("c", Mine, "one of a, b or module:Class, got 'c'"),
        ("a\n", Mine, "one of a, b or module:Class, got 'a\\n'"),
        ("../a:B", Mine, "one of a, b or module:Class, got '../a:B'"),
        ("\ud800", str, "a string, got '\\ud800'"),
        ({"a": math.nan}, Arguments, "a table, each value"),
        ({"a": {}}, Arguments, "a table, each value"),
        ({1: 1}, Arguments, "a table, each value"),
        ({("a",): 1}, Arguments, "a table, each value"),
        ({"\ud800": 1}, Arguments, "a table, each value"),
    ],
)
def test_what_does_not_fit(value: object, kind: Any, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        validated("table.name", value, kind)
    assert str(caught.value).startswith(f"table.name: expected {words}")


def test_a_value_that_contains_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(RecipeError, match="expected a table"):
        validated("kwargs", {"a": endless}, Arguments)


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("1_000_000", Count, 1_000_000),
        ("1e6", Count, 1_000_000),
        ("1.5", Count, "1.5"),
        ("1e999999999", Count, "1e999999999"),
        ("None", Count | None, None),
        ("7", Count | None, 7),
        ("64,64", Layers, [64, 64]),
        ("[64, 64]", Layers, [64, 64]),
        ("", Layers, []),
        ("auto", Literal["auto"] | Layers, "auto"),
        ("8,4", Literal["auto"] | Layers, (8, 4)),
        ("TRUE", bool, True),
        ("fast", Positive, "fast"),
        ("1e-3", Positive, 1e-3),
    ],
)
def test_what_is_typed(text: str, kind: Any, value: object) -> None:
    assert repr(from_text(text, kind)) == repr(value)


@dataclass(frozen=True)
class Table(Settings):
    """A table."""

    table: ClassVar[str] = "table"
    unused: ClassVar[frozenset[str]] = frozenset({"hidden"})

    size: Count = 1
    hidden: Count = 2
    kwargs: Arguments = field(default_factory=dict)

    def check(self) -> None:
        if self.size == 13:
            raise RecipeError(f"{self.key('size')}: expected luck")


def test_bug_a_number_above_a_bound_was_a_text_where_auto_is_possible_too() -> None:
    """So the message asked for an integer >= 1, and got '100000'."""
    kind: Any = Literal["auto"] | Size
    assert from_text("100_000", kind) == 100_000
    assert from_text("many", kind) == "many"
    with pytest.raises(RecipeError, match="expected auto or an integer <= 65536, got 100000"):
        validated("key", from_text("100_000", kind), kind)


def test_a_table_is_checked_when_it_is_made() -> None:
    assert Table(3).values() == {"size": 3, "kwargs": {}}
    with pytest.raises(RecipeError, match=r"^table\.size: expected an integer >= 1, got 0$"):
        Table(0)
    with pytest.raises(RecipeError, match="expected luck"):
        Table(13)


def test_expected_names_a_bound_that_nobody_meets_only_where_it_is_exceeded() -> None:
    assert expected(Size | None) == "an integer >= 1 or none"
    assert expected(Size | None, 10**9) == "an integer <= 65536 or none"


def test_schedules() -> None:
    assert scheduled("constant", 0.25) == 1.0
    assert scheduled("linear", 0.25) == 0.75
    assert [scheduled("cooldown", done) for done in (0.0, 0.5, 0.75, 1.0)] == [1.0, 1.0, 0.5, 0.0]
    assert scheduled(lambda progress: progress**2, 0.5) == 0.25
