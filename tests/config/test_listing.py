"""What --help and the README list is what conf/ holds."""

from __future__ import annotations

from pathlib import Path

from slaterl.config.listing import as_help, as_markdown, choices, groups
from slaterl.paths import CONF

README = Path(__file__).parents[2] / "README.md"


def test_readme_lists_what_there_is() -> None:
    listed = README.read_text().split("<!-- choices -->")[1].split("<!-- end of choices -->")[0]
    assert listed.strip() == as_markdown(), "python -m slaterl.config.listing > the README's list"


def test_every_file_says_what_it_is() -> None:
    for group in groups():
        for name, text in choices(group).items():
            assert text and text[0].isupper() and text.endswith("."), f"conf/{group}/{name}.yaml: its first line"
            assert name in as_help() and text in as_help()


def test_every_group_is_listed() -> None:
    hidden = {"hydra", "logger"}  # launchers; a list in config.yaml, see the README's Loggers
    assert {folder.name for folder in CONF.iterdir() if folder.is_dir()} - hidden <= set(groups())
