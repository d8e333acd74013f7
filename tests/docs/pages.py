"""What tests read of the documentation: its pages, their blocks of code, and the commands in them.

Comments in HTML, which no renderer shows, say what a block is: `<!-- runnable -->` before shell commands that the tests
run at scale=smoke, and `<!-- file: mine/agent.py -->` before the content of a file that later commands need.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(?:^<!-- (?P<marker>[^\n]*) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
RUN = ["python", "-m", "slaterl.run"]


@dataclass(frozen=True)
class Block:
    """A block of code on a page. `marker` is the comment on the line before it, or empty."""

    page: Path
    line: int
    marker: str
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, match.start("text")), match["marker"] or "", match["language"], match["text"])
        for match in BLOCK.finditer(text)
    ]


def shell_lines(text: str) -> list[list[str]]:
    """The commands of a block, each as its words; comments are left out."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def arguments_of(words: list[str]) -> list[str] | None:
    """What follows `python -m slaterl.run` or `slaterl` in a command; None if it is another command."""
    while words and re.match(r"[A-Z_]+=", words[0]):  # variables of the environment
        words = words[1:]
    if words[:3] == RUN:
        return words[3:]
    return words[1:] if words and words[0] == "slaterl" else None


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every command of slaterl on all pages, and its place: those in shell blocks, and those of recipes in tables."""
    for page in PAGES:
        for block in blocks(page):
            if block.language == "bash":
                for words in shell_lines(block.text):
                    arguments = arguments_of(words)
                    if arguments is not None:
                        yield f"{block.place}: {' '.join(arguments)}", arguments
        for number, cell in recipes(page):
            yield f"{page.relative_to(ROOT)}:{number}: {cell}", shlex.split(cell)


def recipes(page: Path) -> Iterator[tuple[int, str]]:
    """The code in the columns that are headed by `python -m slaterl.run`, with its line."""
    column: int | None = None
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            column = None
        elif column is None:
            column = next((i for i, cell in enumerate(cells) if "`python -m slaterl.run`" in cell), -1)
        elif 0 <= column < len(cells):
            for code in re.findall(r"`([^`]*)`", cells[column]):
                if "=" in code or code.startswith("-"):
                    yield number, code
