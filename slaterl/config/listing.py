"""List the files of each configuration group in conf/; the first line of a file describes it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from slaterl.errors import UserError
from slaterl.paths import CONF


def groups() -> list[str]:
    """Return the groups of config.yaml, in its order."""
    entries = OmegaConf.load(CONF / "config.yaml").defaults
    names = [str(key) for entry in entries if isinstance(entry, DictConfig) for key in entry]
    return [name for name in names if (CONF / name).is_dir()]


def choices(group: str) -> dict[str, str]:
    """Return the files of a group, each with its first comment line."""
    found = {}
    for file in sorted((CONF / group).glob("*.yaml")):
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("# @package")]
        found[file.stem] = lines[0].removeprefix("# ")
    return found


def check_one_of_each(arguments: Sequence[str]) -> None:
    """Refuse several files of a group on the command line: Hydra would merge them, and the last one would win.

    Raises:
        UserError: names the argument, and the way to run them all.
    """
    for argument in arguments:
        found = re.match(r"([\w/]+)=\[(.*)\]$", argument)
        if found and found[1] in groups() and found[1] not in ("logger", "experiment"):  # these add up
            several = found[2].replace(" ", "")
            raise UserError(
                f"{argument}: {found[1]} takes one choice; to run one after the other: -m {found[1]}={several}"
            )


def check_flags(arguments: Sequence[str]) -> None:
    """Refuse -m next to --cfg, which Hydra answers with a traceback.

    Raises:
        UserError: says what to leave out.
    """
    if {"-m", "--multirun"} & set(arguments) and {"-c", "--cfg"} & set(arguments):
        raise UserError("--cfg shows the settings of one job: leave out -m, and give each setting one value")


def as_help() -> str:
    """List all groups for --help."""
    parts = []
    for group in groups():
        entries = choices(group)
        width = max(map(len, entries))
        parts.append("\n".join([f"{group}=", *(f"  {name:{width}}  {text}" for name, text in entries.items())]))
    return "\n\n".join(parts)


def as_markdown() -> str:
    """List all groups as Markdown tables."""
    parts = []
    for group in groups():
        rows = [f"| `{name}` | {text} |" for name, text in choices(group).items()]
        parts.append("\n".join([f"| `{group}=` | |", "|---|---|", *rows]))
    return "\n\n".join(parts)


if __name__ == "__main__":
    print(as_markdown())
