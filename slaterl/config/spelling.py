"""Which setting a misspelt key was probably meant to be. Without torch, because the command line is explained early."""

from __future__ import annotations

import difflib
import functools
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from slaterl.config.listing import groups
from slaterl.paths import CONF


def no_such_setting(path: str, key: str, known: Collection[str], settings: Mapping[str, Any]) -> str:
    """Say that a key does not exist, and which one was probably meant.

    Args:
        path: dotted key of the node; "" for the whole configuration.
        known: keys that the node may have.
        settings: those that it has. One of them may have the key inside.
    """
    inside = [f"{name}.{key}" for name, child in settings.items() if isinstance(child, Mapping) and key in child]
    close = [*inside, *difflib.get_close_matches(key, known, n=1)]
    hint = f"did you mean {close[0]}?" if close else f"there are {listed(known)}"
    return f"{path}.{key}: no such setting; {hint}" if path else f"{key}: no such setting; {hint}"


def listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(set(names) - {"_target_"}))


def explain_spelling(main: Callable[[], Any]) -> Callable[[], Any]:
    """Decorate the command: after Hydra has refused a key, name the one that was probably meant."""

    @functools.wraps(main)
    def explained() -> Any:
        try:
            return main()
        except SystemExit as end:
            mistake = misspelt(sys.argv[1:]) if end.code == 1 else None
            if mistake is not None:
                print(f"error: {mistake}", file=sys.stderr)
            raise

    return explained


def misspelt(arguments: Sequence[str]) -> str | None:
    """Return the mistake in the first argument whose setting does not exist; None if all exist."""
    given = [argument.partition("=") for argument in arguments if re.match(r"~|\w[\w.]*=", argument)]
    chosen = [f"{key}={value.partition(',')[0]}" for key, _, value in given if value and key in groups()]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            settings = OmegaConf.to_container(compose("config", chosen), resolve=False)
    except Exception:  # Hydra has said what is wrong with the choices
        return None
    assert isinstance(settings, dict)
    for key, _, _ in given:
        if key not in groups() and re.fullmatch(r"~?\w+(\.\w+)*", key) and not key.startswith(("hydra", "logger")):
            mistake = _unknown(key.lstrip("~").split("."), settings)
            if mistake is not None:
                return mistake
    return None


def _unknown(parts: Sequence[str], settings: Mapping[Any, Any]) -> str | None:
    """Return the mistake in a dotted key, given as its parts; None if the key exists, or only its values are wrong."""
    inner: Any = settings
    for place, part in enumerate(parts):
        if not isinstance(inner, Mapping):
            return None
        if part not in inner:
            return no_such_setting(".".join(parts[:place]), part, [str(name) for name in inner], inner)
        inner = inner[part]
    return None
