"""The rooms of the house: packages import in one direction, and no room grows too large."""

from __future__ import annotations

import ast
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from slaterl.paths import CONF

PACKAGE = Path(__file__).parents[1] / "slaterl"
MODULES = sorted(PACKAGE.rglob("*.py"))
STAGES = {
    OmegaConf.load(file)["_target_"].rpartition(".")[0] for file in (CONF / "stage").glob("*.yaml")
}  # slaterl.stages.online, ...


def imported(file: Path) -> set[str]:
    """Modules of slaterl that a file imports, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.startswith("slaterl.")}


def room(name: str) -> str:
    """slaterl.agents.online.sac -> agents"""
    return name.split(".")[1]


def test_packages_import_in_one_direction() -> None:
    above: defaultdict[str, set[str]] = defaultdict(set)
    for file in MODULES:
        own = ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)
        if own != "slaterl.__init__":
            above[room(own)] |= {room(name) for name in imported(file)} - {room(own)}
    try:
        TopologicalSorter(above).prepare()
    except CycleError as error:
        pytest.fail(f"packages import each other in a circle: {' -> '.join(error.args[1])}")


def test_no_stage_imports_a_stage() -> None:
    assert len(STAGES) >= 11
    for file in (PACKAGE / "stages").glob("*.py"):
        own = f"slaterl.stages.{file.stem}"
        if own in STAGES:
            assert not imported(file) & (STAGES - {own}), file


def lines(file: Path) -> int:
    return len(file.read_text(encoding="utf-8").splitlines())


def test_no_module_is_too_long() -> None:
    assert not {str(file): lines(file) for file in MODULES if lines(file) > 300}
    stages = [PACKAGE / "stages" / f"{name.rpartition('.')[2]}.py" for name in STAGES]
    assert not {file.name: lines(file) for file in stages if lines(file) > 120}


def test_few_modules_at_the_root() -> None:
    assert len([file for file in PACKAGE.glob("*.py") if file.name != "__init__.py"]) <= 12
