"""Types of settings with their ranges, for the signatures that take them, and the check of a value against one.

    def __init__(self, *, gamma: Fraction, q_lr: Positive, q_hidden: Widths, serving: Literal["topk", "greedy"]): ...

pydantic does the checking. The description of a type is what a message says was expected.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from slaterl.errors import UserError


def _whole(value: Any) -> Any:
    """1e5 is a float in YAML, and a whole number to whoever wrote it."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Number = Annotated[float, Field(allow_inf_nan=False, description="a finite number")]
Fraction = Annotated[float, Field(ge=0, le=1, description="a number from 0 to 1")]
Share = Annotated[float, Field(gt=0, le=1, description="a number above 0 and at most 1")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, description="a number above zero")]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False, description="a number of at least 0")]
Whole = Annotated[int, BeforeValidator(_whole), Field(ge=0, description="a whole number of at least 0")]
Count = Annotated[int, BeforeValidator(_whole), Field(ge=1, description="a whole number of at least 1")]
Several = Annotated[int, BeforeValidator(_whole), Field(ge=2, description="a whole number of at least 2")]
Widths = Annotated[Sequence[Count], Field(min_length=1, description="a list of layer widths, such as [256]")]
Text = Annotated[str, Field(description="text")]
Folder = Annotated[str, Field(description="a folder")]
File = Annotated[str, Field(description="a path")]


def checked(path: str, value: Any, hint: Any) -> Any:
    """The value as its type has it: a whole number as int, everything else as it was.

    Args:
        path: dotted key of the setting, for the message.
        hint: a type from above, or Literal, bool, a union of these with None.

    Raises:
        UserError: the value is not of the type, or out of its range.
    """
    try:
        found = _adapter(hint).validate_python(value, strict=True)
    except ValidationError:
        shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
        raise UserError(f"{path}={shown}: expected {expected(hint)}") from None
    return found if isinstance(found, int) else value


def expected(hint: Any) -> str:
    """What a value of this type is, in words."""
    if get_origin(hint) is Annotated:
        fields = [entry.description for entry in get_args(hint)[1:] if getattr(entry, "description", None)]
        return fields[-1] if fields else expected(get_args(hint)[0])
    if get_origin(hint) is Literal:
        *first, last = map(str, get_args(hint))
        return f"{', '.join(first)} or {last}" if first else last
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(expected(part) for part in get_args(hint))
    return {bool: "true or false", type(None): "null", str: "text"}.get(hint, str(hint))


def check_arguments(path: str, target: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in `values` as the signature of `target` has them; arguments without a range stay as they are.

    Raises:
        UserError: a value out of the range that the signature gives; names it as `path.argument`.
    """
    hints = hints_of(target)
    return {
        name: checked(f"{path}.{name}" if path else name, value, hints[name]) if has_range(hints.get(name)) else value
        for name, value in values.items()
    }


def has_range(hint: Any) -> bool:
    """Whether the type says which values are allowed: one of the types above, Literal or bool, or a union of them."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return all(part is type(None) or has_range(part) for part in get_args(hint))
    if origin is Annotated:
        return any(isinstance(entry, type(Field())) for entry in get_args(hint)[1:])
    return origin is Literal or hint is bool


@lru_cache
def hints_of(target: Callable[..., Any]) -> dict[str, Any]:
    """The types of a function's or a class's arguments; those that a class passes on as **others, from its bases."""
    hints: dict[str, Any] = {}
    for base in inspect.getmro(target) if inspect.isclass(target) else (target,):
        function = vars(base).get("__init__") if inspect.isclass(target) else base
        if inspect.isfunction(function):
            hints = get_type_hints(function, include_extras=True) | hints
    return hints


@lru_cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint)
