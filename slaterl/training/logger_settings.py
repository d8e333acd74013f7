"""Checks of the settings below `logger`, before anything starts."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from slaterl.errors import UserError
from slaterl.paths import CONF

SUPPLIED = ("save_dir", "name", "run_name", "version", "id")  # arguments that make_loggers gives


def check_loggers(cfg: DictConfig) -> None:
    """Refuse, before anything starts, settings that would fail at the first logged row.

    Raises:
        UserError: the logger has no such setting, a value is out of range, or a package or a login is missing.
    """
    chosen = nodes_of(cfg)
    for name, node in chosen.items():
        if not isinstance(node, dict):
            raise UserError(_misplaced(name, chosen))
        path = f"logger.{name}"
        if "_target_" not in node:
            raise UserError(f"{path}: its class (_target_) is missing; choose it, as in logger=[csv,{name}]")
        target = class_of(name, node["_target_"])
        settings = {key: value for key, value in node.items() if key != "_target_"}
        _check_keys(path, target, settings)
        _check_values(path, target, settings)


def check_overrides(arguments: Sequence[str]) -> None:
    """Refuse a logger's setting directly below `logger` on the command line. Hydra would refuse it without a hint.

    Raises:
        UserError: names the setting that was probably meant.
    """
    chosen = [argument.partition("=")[2] for argument in arguments if re.match(r"\+{0,2}logger=", argument)]
    for argument in arguments:
        found = re.match(r"\+{0,2}logger\.(\w+)=(?!\{)", argument)
        if found:
            raise UserError(_misplaced(found[1], re.findall(r"\w+", " ".join(chosen))))


def _misplaced(key: str, chosen: Sequence[str] | Mapping[str, Any]) -> str:
    files = {
        file.stem: OmegaConf.select(OmegaConf.load(file), file.stem) or {}
        for file in sorted((CONF / "logger").glob("*.yaml"))
    }
    having = [name for name, node in files.items() if key in node]
    having = [name for name in having if name in chosen] or having
    if not having:
        return f"logger.{key}: no such setting; settings are below a logger's name, as in logger.tensorboard.prefix=x"
    meant = " or ".join(f"logger.{name}.{key}" for name in having)
    add = "" if set(having) & set(chosen) else f" (with logger={having[0]})"
    return f"logger.{key}: no such setting; did you mean {meant}?{add}"


def nodes_of(cfg: DictConfig) -> dict[str, Any]:
    """Return the nodes below `logger`, by name; none with csv alone."""
    return OmegaConf.to_container(cfg.get("logger") or OmegaConf.create({}), resolve=True)  # type: ignore[return-value]


def class_of(name: str, address: str) -> Any:
    """Import a logger's class.

    Raises:
        UserError: its package is not installed, or the class does not exist.
    """
    module, _, attribute = str(address).rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        package = str(error.name).split(".")[0]
        if package != "slaterl":
            wanted = f"'slaterl[{name}]'" if module.startswith("slaterl.") else package
            raise UserError(f"logger={name} needs the package {package}: pip install {wanted}") from error
        raise UserError(f"logger.{name}._target_={address}: no such class ({error})") from error
    except ImportError as error:
        raise UserError(f"logger={name}: {module} cannot be imported ({error})") from error
    except (AttributeError, ValueError) as error:
        raise UserError(f"logger.{name}._target_={address}: no such class ({error})") from error


def _check_keys(path: str, target: Any, settings: Mapping[str, Any]) -> None:
    """Compare the settings with the signature. Only the library knows which settings **kwargs takes."""
    parameters = inspect.signature(target).parameters.values()
    known = {p.name: p for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD) and p.name != "run"}
    takes_more = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for key in settings.keys() - known.keys():
        close = difflib.get_close_matches(key, known, n=1)
        if close or not takes_more or key == "run":
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
            raise UserError(f"{path}.{key}: no such setting; {hint}")
    for key, parameter in known.items():
        if parameter.default is parameter.empty and key not in settings and key not in SUPPLIED:
            raise UserError(f"{path}.{key}: a value is needed; give +{path}.{key}=...")


def _check_values(path: str, target: Any, settings: Mapping[str, Any]) -> None:
    """Check values against the types of our own loggers; other loggers check theirs when they are made."""
    from slaterl.bounds import check_arguments
    from slaterl.training.run_logger import RunLogger

    if isinstance(target, type) and issubclass(target, RunLogger):
        check_arguments(path, target, settings)
        target.check(path, settings)
