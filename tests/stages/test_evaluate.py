"""stage=evaluate of what does not learn but acts through a ranker: one constant slate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from slaterl.report.records import find, name_methods
from slaterl.run import run_stage
from slaterl.runs import read_json
from tests.helpers import compose_config

SIZES = """scale=smoke device=cpu threads=1 env.num_items=60 env.num_topics=5 env.slate_size=4 env.episode_length=7
test_users=6 logged_data.trajectories=30 stage=evaluate agent=constant_slate"""
SMALL = SIZES.split()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The slate of two rankers, of one of them without repeats too, and one that is given."""
    home = tmp_path_factory.mktemp("constant") / "home"
    for more in ([], ["ranker.unique=true"], ["params=params1", "seed=1"], ["agent.slate=[1,2,3,4]"]):
        run_stage(compose_config(*SMALL, *more, f"paths.root={home}"))
    return home


def results(home: Path) -> list[dict[str, Any]]:
    return [read_json(file) for file in home.glob("evaluate/*/constant_slate-*/result.json")]


def test_another_ranking_is_another_run(home: Path) -> None:
    """ranker.unique, too, decides what the slate is."""
    assert len(results(home)) == 4


def test_result_names_the_ranker_that_made_the_slate(home: Path) -> None:
    made = [result for result in results(home) if "ranker_run" in result]
    assert sorted(result["ranker"] for result in made) == ["gems_KL0.5_click0.2", *["gems_KL1.0_click0.5"] * 2]
    assert all(result["test_distinct_items"] <= 4 for result in made)


def test_slates_of_different_rankers_are_no_seeds_of_one_method(home: Path) -> None:
    names = name_methods(find(None, home))
    assert len(set(names)) == 4
    assert sum(name.startswith("constant_slate + gems_KL1.0_click0.5") for name in names) == 2
