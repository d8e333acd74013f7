"""Check the composed configuration before anything starts: its keys, its values, and which parts fit together.

Signatures say which keys and values are allowed: of the classes that nodes name as `_target_`, and of the classes in
sections.py. Hydra refuses unknown keys on the command line, but not keys added with + or in a preset.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, get_args, get_origin

from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from slaterl.bounds import check_arguments, hints_of, shown
from slaterl.config.build import SUPPLIED, parameters_of, plain
from slaterl.config.fits import check_behaviours, check_env, check_fit, check_protocol, check_readers
from slaterl.config.logs import settle_learned, settle_log
from slaterl.config.sections import Configuration, NamedPart, Part, Section
from slaterl.config.spelling import listed, no_such_setting
from slaterl.errors import UserError


def given_keys() -> set[str]:
    """Return the keys set by the command line or a sweep, such as env, env.num_items or test_users."""
    return keys_of(HydraConfig.get().overrides.task) if HydraConfig.initialized() else set()


def keys_of(overrides: Iterable[str]) -> set[str]:
    return {override.lstrip("+~").split("=")[0] for override in overrides}


def check_config(cfg: DictConfig, given: Iterable[str] = ()) -> None:
    """Refuse unknown and missing settings, values out of range, and parts that do not fit together.

    Whole numbers that are written as floats, such as max_steps=1e5, become ints in `cfg`.

    Args:
        given: keys of the command line, such as dataset.path.

    Raises:
        UserError: names the setting.
    """
    nodes = list(_nodes("", cfg, Configuration))
    for node in nodes:
        _check_keys(node)
    settle_log(cfg, given)
    settle_learned(cfg, given)
    check_readers(cfg, given)
    for key in _open_keys(OmegaConf.to_container(cfg, resolve=False)):
        raise UserError(f"{key}: a value is needed; give {key}=...")
    try:
        OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0].removeprefix("UserError raised while resolving interpolation: ")
        raise UserError(f"{error.full_key}: {reason}") from error
    for node in nodes:
        _check_values(node)
    check_protocol(cfg)
    check_behaviours(cfg)
    check_env(cfg, given)
    check_fit(cfg)


class _Node(NamedTuple):
    path: str  # dotted key; "" for the whole configuration
    settings: DictConfig
    target: Any  # class or function whose arguments the settings are
    named: bool  # whether it needs a name

    def key(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name


def _nodes(path: str, value: Any, hint: Any) -> Iterator[_Node]:
    """Yield a node and the nodes inside it, in the order of the signatures.

    A node that is copied from elsewhere, such as ${click_model}, is checked there.

    Args:
        hint: type of the value in the signature that takes it; sections are recognised by it, parts by `_target_`.
    """
    if get_origin(hint) is dict:
        if not isinstance(value, DictConfig):
            raise UserError(f"{path}={shown(value)}: expected settings below names of their own, or {{}} for none")
        for key in value:
            yield from _nodes(f"{path}.{key!s}", value[key], get_args(hint)[1])
        return
    classes = [cls for cls in (get_args(hint) or (hint,)) if inspect.isclass(cls) and issubclass(cls, Section)]
    if isinstance(value, DictConfig) and "_target_" in value:
        try:
            target = get_object(value["_target_"])
        except (ImportError, ValueError, AttributeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{path}._target_={value['_target_']}: no such class ({reason})") from error
    elif not classes:
        return
    elif not isinstance(value, DictConfig):
        chosen = len(classes) > 1 or issubclass(classes[0], Part)
        expected = f"one of the files in conf/{path}" if chosen else f"the settings {listed(hints_of(classes[0]))}"  # type: ignore[arg-type] # a class is hashable
        raise UserError(f"{path}={shown(value)}: expected {expected}")
    else:
        target = max(classes, key=lambda cls: len(value.keys() & hints_of(cls).keys()))  # type: ignore[arg-type]
        if issubclass(target, Part):
            raise UserError(f"{path}: its class (_target_) is missing; choose one of the files in conf/")
    node = _Node(path, value, target, named=NamedPart in classes)
    yield node
    for name in parameters_of(target):
        if name in value and not OmegaConf.is_interpolation(value, name) and not OmegaConf.is_missing(value, name):
            yield from _nodes(node.key(name), value[name], hints_of(target).get(name))


def _check_keys(node: _Node) -> None:
    """Refuse settings that the target does not take, and ask for those without a default that are absent."""
    settings = {name: p for name, p in parameters_of(node.target).items() if name not in SUPPLIED.get(node.path, ())}
    needed = {name for name, parameter in settings.items() if parameter.default is inspect.Parameter.empty}
    known = settings.keys() | ({"name", "_target_"} if "_target_" in node.settings else set())
    found = [str(key) for key in node.settings]
    for key in sorted(set(found) - known):
        children: dict[str, Any] = {name: node.settings._get_node(name) for name in found}
        raise UserError(no_such_setting(node.path, key, known, children))
    for key in sorted((needed | ({"name"} if node.named else set())) - set(found)):
        raise UserError(f"{node.key(key)}: a value is needed; give {node.key(key)}=...")


def _open_keys(values: Any, path: str = "") -> Iterator[str]:
    """Yield the keys whose value is ???."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _open_keys(value, f"{path}{key}.")
        elif value == "???":
            yield f"{path}{key}"


def _check_values(node: _Node) -> None:
    values = plain(node.settings)
    for key, value in check_arguments(node.path, node.target, values).items():
        if repr(value) != repr(values[key]) and not OmegaConf.is_interpolation(node.settings, key):
            node.settings[key] = value
