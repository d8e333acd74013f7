"""What --help and docs/choices.md list is what conf/ holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from slaterl.config.listing import as_help, as_markdown, check_flags, check_one_of_each, choices, groups
from slaterl.errors import UserError
from slaterl.paths import CONF

CHOICES = Path(__file__).parents[2] / "docs" / "choices.md"


def test_choices_lists_what_there_is() -> None:
    listed = CHOICES.read_text(encoding="utf-8").split("<!-- choices -->")[1].split("<!-- end of choices -->")[0]
    assert listed.strip() == as_markdown(), "put the output of python -m slaterl.config.listing there"


def test_every_file_says_what_it_is() -> None:
    for group in groups():
        for name, text in choices(group).items():
            assert text and text[0].isupper() and text.endswith("."), f"conf/{group}/{name}.yaml: its first line"
            assert name in as_help() and text in as_help()


def test_every_group_is_listed() -> None:
    hidden = {"hydra", "logger"}  # launchers; a list in config.yaml, see docs/loggers.md
    assert {folder.name for folder in CONF.iterdir() if folder.is_dir()} - hidden <= set(groups())


@pytest.mark.parametrize("argument", ["env=[focused_topdown,diffuse_mix]", "agent=[sac, td3]"])
def test_a_group_takes_one_choice(argument: str) -> None:
    group, _, several = argument.partition("=")
    with pytest.raises(UserError) as raised:
        check_one_of_each(["-m", "seed=1,2", argument])
    assert str(raised.value).startswith(f"{argument}: {group} takes one choice")
    assert str(raised.value).endswith(f"-m {group}={several.strip('[]').replace(' ', '')}")


def test_lists_that_are_meant() -> None:
    check_one_of_each(["experiment=[offline_benchmark,head_to_head]"])
    check_one_of_each(["logger=[csv,swanlab]", "agent.q_hidden=[256,256]", "-m", "env=focused_topdown,diffuse_mix"])


def test_settings_are_shown_of_one_job() -> None:
    with pytest.raises(UserError, match="--cfg shows the settings of one job: leave out -m"):
        check_flags(["-m", "seed=1,2", "--cfg", "job"])
    check_flags(["seed=1", "--cfg", "job"])
    check_flags(["-m", "seed=1,2"])
