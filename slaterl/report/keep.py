"""Keep the small files of finished runs in a folder, such as one of a repository."""

from __future__ import annotations

import glob
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slaterl.console import note
from slaterl.report import tables
from slaterl.report.find import find
from slaterl.report.records import Record
from slaterl.runs.files import read_json, whole_file, write_text

# the manifest comes last, because a folder without it counts as no run
FILES = ("result.json", "metrics.csv", "manifest.json")


def keep(records: Sequence[Record], folder: Path) -> None:
    """Keep the finished runs among the records. runs.csv gets a row for each run of the folder.

    Raises:
        UserError: a file cannot be written.
    """
    for record in records:
        if record.result:
            keep_run(record.path, folder)
    runs = tables.results(find(glob.escape(str(folder)), folder))
    runs["path"] = [path.relative_to(folder).as_posix() for path in runs["path"]]
    write_text(folder / "runs.csv", runs.to_csv(index=False))


def keep_run(run: Path, folder: Path) -> None:
    """Copy the FILES of a finished run to `folder/stage/environment/name`.

    Folders of this machine and its name are left out. A file that is there stays, and a warning says if it differs.

    Raises:
        UserError: a file cannot be written.
    """
    result = read_json(run / "result.json")
    for name in FILES:
        if (run / name).is_file():
            _keep_file(run / name, folder / result["stage"] / result["env"] / run.name / name)


def _keep_file(file: Path, kept: Path) -> None:
    content = file.read_bytes() if file.suffix == ".csv" else (json.dumps(_portable(file), indent=2) + "\n").encode()
    if not kept.is_file():
        with whole_file(kept) as partial:
            partial.write_bytes(content)
    elif kept.read_bytes() != content:
        note(f"warning: {kept} differs from {file} and stays; remove its folder to keep the newer one")


def _portable(file: Path) -> dict[str, Any]:
    """Read a manifest or a result without folders of this machine and its name."""
    value = read_json(file)
    value.get("machine", {}).pop("host", None)
    checkpoint = Path(value.get("checkpoint", ""))  # of a result; the run's folder is a part of its name
    return _without_folders(value) | ({"checkpoint": "/".join(checkpoint.parts[-2:])} if "checkpoint" in value else {})


def _without_folders(value: Any) -> Any:
    """Replace absolute paths by their last parts, in plain values and in arguments of a command."""
    if isinstance(value, dict):
        return {key: _without_folders(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_folders(entry) for entry in value]
    if not isinstance(value, str):
        return value
    if Path(value).is_absolute():
        return Path(value).name
    key, _, argument = value.partition("=")
    return f"{key}={Path(argument).name}" if Path(argument).is_absolute() else value
