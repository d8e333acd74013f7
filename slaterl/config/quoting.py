"""Explain how to quote a value that Hydra's grammar does not accept, such as a path with an equals sign."""

from __future__ import annotations

import functools
import itertools
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException


def explain_quoting(main: Callable[[], Any]) -> Callable[[], Any]:
    """Decorate the command: an override that cannot be parsed ends it with one message that says how to quote."""

    @functools.wraps(main)
    def explained() -> Any:
        mistake = unquoted(sys.argv[1:])
        if mistake is not None:
            print(f"error: {mistake}", file=sys.stderr)
            sys.exit(2)
        return main()

    return explained


def unquoted(arguments: Sequence[str]) -> str | None:
    """Return the mistake in the first argument that needs quotes, with the fix; None if no argument does."""
    for before, argument in itertools.pairwise(["", *arguments]):
        if argument.startswith("-") or _parses(argument):
            continue
        if "=" in argument:
            whole, problem = argument, "Hydra cannot read this value"
        elif "=" in before and not before.startswith("-"):  # the shell split a value at a blank
            whole, problem = f"{before} {argument}", "expected <setting>=<value>"
        else:
            continue
        key, _, value = whole.partition("=")
        quoted = '{}="{}"'.format(key, value.replace('"', r"\""))
        if _parses(quoted):
            return f"{argument}: {problem}; quote it for Hydra and for the shell: {shlex.quote(quoted)}"
    return None


def _parses(override: str) -> bool:
    try:
        OverridesParser.create().parse_overrides([override])
    except OverrideParseException:
        return False
    return True
