"""A value that Hydra cannot parse is refused by a message that says how to quote it, and the advice works."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from slaterl.config.quoting import unquoted


def value_of(override: str) -> str:
    (parsed,) = OverridesParser.create().parse_overrides([override])
    return str(parsed.value())


@pytest.mark.parametrize(
    "value",
    ["a=b.csv", "my file (1).csv", "数据.csv", "it's.csv", 'a"b.csv', "{a}.csv", "[a].csv", "a&b.csv", "my run=3.ckpt"],
)
def test_advice_gives_the_value(value: str) -> None:
    said = unquoted(["stage=collect", f"dataset.path={value}"])
    assert said is not None and said.startswith(f"dataset.path={value}: ")
    (advised,) = shlex.split(said.partition("for the shell: ")[2])
    assert value_of(advised) == value


def test_blank_that_the_shell_split() -> None:
    said = unquoted(["stage=evaluate", "checkpoint=my", "file.ckpt"])
    assert said is not None and said.startswith("file.ckpt: ") and said.endswith("""'checkpoint="my file.ckpt"'""")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--cfg", "job", "agent=sac"],
        ["-m", "seed=1,2", "agent.q_hidden=[256,256]", "~logger", "+a=1"],
        ["checkpoint=my file.ckpt", 'dataset.path="a=b.csv"', "hydra.sweeper.params={a: 1}"],
        ["foo"],  # Hydra's own message says what is missing
    ],
)
def test_what_hydra_understands(arguments: list[str]) -> None:
    assert unquoted(arguments) is None


def test_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "slaterl.run", "stage=collect", "dataset=file"]
    done = subprocess.run([*command, "dataset.path=a=b.csv"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert done.stderr.endswith("""quote it for Hydra and for the shell: 'dataset.path="a=b.csv"'\n""")
    quoted = subprocess.run(
        [*command, 'dataset.path="a=b.csv"', "--cfg", "job"], capture_output=True, text=True, cwd=tmp_path
    )
    assert quoted.returncode == 0 and "path: a=b.csv" in quoted.stdout
