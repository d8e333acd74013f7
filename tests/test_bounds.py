"""Types with ranges: what each allows, how a message says it, and where signatures get them from."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pytest

from slaterl import bounds
from slaterl.bounds import Count, Fraction, Positive, Whole, Widths, check_arguments, checked, hints_of
from slaterl.errors import UserError

if TYPE_CHECKING:
    from somewhere import Unknown

ALLOWED: dict[str, tuple[list[Any], list[Any]]] = {
    "Number": ([-1, 0.5], [math.inf, math.nan, True, "1", None]),
    "Fraction": ([0, 1, 0.5], [-0.1, 1.1, math.nan, True, "1"]),
    "Share": ([1e-9, 1], [0, 1.1]),
    "Discount": ([0, 0.99], [1, -0.1, math.nan]),
    "Holdout": ([0.1], [0, 1]),
    "Positive": ([1e-9, 10], [0, -1, math.inf, math.nan]),
    "NonNegative": ([0, 10], [-1e-9, math.inf]),
    "Whole": ([0, 7, 1e5], [-1, 0.5, True, "7", math.inf]),
    "Count": ([1, 1e5], [0, 0.5, True]),
    "Several": ([2], [1]),
    "TorchSeed": ([0, 2**63 - 1], [-1, 2**63]),
    "Widths": ([[1], [256, 2e2]], [[], [0], 256, "256", [True]]),
    "Text": ([""], [5, None]),
    "Folder": (["x"], [5]),
    "File": (["x"], [5]),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_what_each_type_allows(name: str) -> None:
    allowed, refused = ALLOWED[name]
    hint = getattr(bounds, name)
    for value in allowed:
        assert checked("a.b", value, hint) == value
    for value in refused:
        with pytest.raises(UserError, match=r"^a\.b=.*: expected "):
            checked("a.b", value, hint)


@pytest.mark.parametrize(
    ("value", "hint", "said"),
    [
        (True, Count, "a=true: expected a whole number of at least 1"),
        (0, Count | None, "a=0: expected a whole number of at least 1 or null"),
        ("x", Literal["p", "q", "r"], "a=x: expected p, q or r"),
        ("x", bool, "a=x: expected true or false"),
        ("x", Literal["auto"] | Positive, "a=x: expected auto or a number above zero"),
        (None, Widths, "a=null: expected a list of layer widths, such as [256]"),
    ],
)
def test_messages(value: Any, hint: Any, said: str) -> None:
    with pytest.raises(UserError) as error:
        checked("a", value, hint)
    assert str(error.value) == said


@pytest.mark.parametrize(("value", "hint"), [(3, Fraction | Positive), (None, Count | None), (0, Fraction)])
def test_other_values_stay_as_they_are(value: Any, hint: Any) -> None:
    assert repr(checked("a", value, hint)) == repr(value)


@pytest.mark.parametrize(
    ("value", "hint", "found"), [(1e5, Whole, 100_000), (2.0, Count | None, 2), ([8.0, 4], Widths, [8, 4])]
)
def test_whole_numbers_become_int(value: Any, hint: Any, found: Any) -> None:
    assert repr(checked("a", value, hint)) == repr(found)


class Base:
    def __init__(self, *, tau: Fraction, width: Count, thing: Unknown | None) -> None: ...


class Derived(Base):
    def __init__(self, *, width: Whole, **others: Any) -> None: ...


@dataclass
class Data:
    decay: Fraction


def test_signatures() -> None:
    """Base classes add their arguments, a derived class has the last word, names of type checkers have no range."""
    assert check_arguments("agent", Derived, {"width": 0.0, "thing": 5, "tau": 0.5}) == {
        "width": 0,
        "thing": 5,
        "tau": 0.5,
    }
    with pytest.raises(UserError, match=r"^agent\.tau=2: expected a number from 0 to 1$"):
        check_arguments("agent", Derived, {"tau": 2})
    with pytest.raises(UserError, match=r"^decay=2: "):
        check_arguments("", Data, {"decay": 2})
    assert set(hints_of(Data)) == {"decay"}


def test_ranges_behind_a_decorator_of_another_module() -> None:
    """contextlib does not know Count."""

    def made(*, count: Count) -> Any:
        yield count

    with pytest.raises(UserError, match=r"made\.count=0: expected a whole number of at least 1"):
        check_arguments("made", contextlib.contextmanager(made), {"count": 0})
