"""Types with ranges for the signatures that take settings, and the check of a value against such a type.

    def __init__(self, *, gamma: Fraction, q_lr: Positive, q_hidden: Widths, serving: Literal["topk", "greedy"]): ...

pydantic does the checking. Messages quote a type's description as the expected value.
"""

from __future__ import annotations

import builtins
import inspect
import re
import types
from collections import ChainMap, defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from slaterl.errors import UserError


def _whole(value: Any) -> Any:
    """Accept 1e5, which YAML reads as a float, as a whole number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


_INTEGER = BeforeValidator(_whole)

Number = Annotated[float, Field(allow_inf_nan=False, description="a number that is finite")]
Fraction = Annotated[float, Field(ge=0, le=1, description="a number from 0 to 1")]
Share = Annotated[float, Field(gt=0, le=1, description="a number above 0 and at most 1")]
Discount = Annotated[float, Field(ge=0, lt=1, description="a number of at least 0 and below 1")]
Holdout = Annotated[float, Field(gt=0, lt=1, description="a number between 0 and 1")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, description="a number above zero")]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False, description="a number of at least 0")]
Whole = Annotated[int, _INTEGER, Field(ge=0, description="a whole number of at least 0")]
Count = Annotated[int, _INTEGER, Field(ge=1, description="a whole number of at least 1")]
Several = Annotated[int, _INTEGER, Field(ge=2, description="a whole number of at least 2")]
TorchSeed = Annotated[int, _INTEGER, Field(ge=0, lt=2**63, description="a whole number from 0 to 2^63 - 1")]
Widths = Annotated[Sequence[Count], Field(min_length=1, description="a list of layer widths, such as [256]")]
Text = Annotated[str, Field(description="text")]
Folder = Annotated[str, Field(description="a folder")]
File = Annotated[str, Field(description="a path")]


def checked(path: str, value: Any, hint: Any) -> Any:
    """Check a value against a type. Return it unchanged, but with whole numbers as int, also those inside a list.

    Args:
        path: dotted key of the setting, for the message.
        hint: one of the types above, Literal, bool, or a union of these with None.

    Raises:
        UserError: the value has another type or is out of range.
    """
    try:
        found = _adapter(hint).validate_python(value, strict=True)
    except ValidationError:
        raise UserError(f"{path}={shown(value)}: expected {expected(hint)}") from None
    return found if isinstance(found, int | list) else value


def shown(value: Any) -> Any:
    """Write a value as users type it: null, true, false."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else value


def expected(hint: Any) -> str:
    """Describe the values of a type in words."""
    if get_origin(hint) is Annotated:
        described = [entry.description for entry in get_args(hint)[1:] if isinstance(entry, FieldInfo)]
        return next(filter(None, described), None) or expected(get_args(hint)[0])
    if get_origin(hint) is Literal:
        *first, last = map(str, get_args(hint))
        return f"{', '.join(first)} or {last}" if first else last
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(expected(part) for part in get_args(hint))
    return {bool: "true or false", type(None): "null", str: "text"}.get(hint, str(hint))


def check_arguments(path: str, target: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Check values against the signature of `target`. Return them with whole numbers as int.

    Arguments whose type has no range pass unchecked.

    Raises:
        UserError: a value is out of the range in the signature; the message names it as `path.argument`.
    """
    hints = hints_of(target)
    return {
        name: checked(f"{path}.{name}" if path else name, value, hints[name]) if has_range(hints.get(name)) else value
        for name, value in values.items()
    }


def check_node(path: str, node: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """Check a node, and the nodes inside it, against the signatures of their `_target_`s. Return it as plain values.

    Raises:
        UserError: see `check_arguments`.
    """
    values = plain(node)
    values = check_arguments(path, get_object(values["_target_"]), values)
    for key, value in values.items():
        if isinstance(value, dict) and "_target_" in value:
            values[key] = check_node(_origin(node, key) or f"{path}.{key}", value)
    return values


def _origin(node: DictConfig | Mapping[str, Any], key: str) -> str | None:
    """Return the key that a value is copied from, click_model for ${click_model}: users set it there."""
    if not isinstance(node, DictConfig) or not OmegaConf.is_interpolation(node, key):
        return None
    found = re.fullmatch(r"\$\{(\w[\w.]*)\}", str(OmegaConf.to_container(node, resolve=False)[key]))  # type: ignore
    return found[1] if found else None


def plain(node: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """Convert a node to a plain dictionary, interpolations resolved."""
    values = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else node
    return {str(key): value for key, value in values.items()}  # type: ignore[union-attr]


def has_range(hint: Any) -> bool:
    """Whether a type limits its values: one of the types above, Literal, bool, or a union of these with None."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return all(part is type(None) or has_range(part) for part in get_args(hint))
    if origin is Annotated:
        return any(isinstance(entry, FieldInfo) for entry in get_args(hint)[1:])
    return origin is Literal or hint is bool


@lru_cache
def hints_of(target: Callable[..., Any]) -> dict[str, Any]:
    """Type hints of the arguments of a function or class, by name; base classes add those that they take."""
    hints: dict[str, Any] = {}
    for base in inspect.getmro(target) if inspect.isclass(target) else (target,):
        function = vars(base).get("__init__") if inspect.isclass(target) else base
        if inspect.isfunction(function):
            # a name that only type checkers import has no range
            names = ChainMap(inspect.unwrap(function).__globals__, vars(builtins), defaultdict(lambda: object))
            hints = get_type_hints(function, localns=names, include_extras=True) | hints
    hints.pop("return", None)
    return hints


@lru_cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint)
