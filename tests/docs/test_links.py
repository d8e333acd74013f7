"""The links of pages that lie outside docs/, which the generator does not see, and of docs/ as GitHub follows them."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT

LINK = re.compile(r"\[[^\]\[]*\]\(([^)\s]+)\)")


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page: Path) -> None:
    """Every file that is linked exists, and every anchor is a heading of its page."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for link in LINK.findall(text):
        if link.startswith(("https://", "http://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.is_file(), f"{link}: there is no {target}"
        if anchor:
            assert anchor in anchors(target), f"{link}: {target.name} has {anchors(target)}"


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub and the generator make them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


def test_every_page_is_linked() -> None:
    """A page that nothing leads to is not found by who reads on GitHub."""
    linked = set()
    for page in PAGES:
        for link in LINK.findall(page.read_text(encoding="utf-8")):
            linked.add((page.parent / link.partition("#")[0]).resolve())
    assert not [page for page in PAGES if page not in linked and page.name != "README.md" and page.parent != ROOT]


def test_console_command() -> None:
    """What pip installs as `slaterl` exists."""
    script = re.search(r'^slaterl = "([\w.]+):(\w+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert script and callable(getattr(import_module(script[1]), script[2]))
