"""The pages of the agents: every logged metric is explained, and the defaults are those of conf/agent."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hydra.utils import get_object
from omegaconf import OmegaConf

from slaterl.agents.base import Agent
from slaterl.paths import CONF
from tests.docs.pages import ROOT

AGENTS = ROOT / "docs" / "agents"
PAGES = {
    "sac_td3.md": {"SAC": ["sac"], "TD3": ["td3"]},
    "reinforce.md": {
        "reinforce: continuous actions through a ranker": ["reinforce"],
        "reinforce_slate: a softmax over items": ["reinforce_slate"],
    },
    "items.md": {"DQN": ["dqn", "slateq"], "SlateQ": ["slateq"], "Wolpertinger": ["wolpertinger"]},
    "slates.md": {"HAC": ["hac"], "GFN4Rec": ["gfn4rec", "gfn4rec_offline"]},
    "constant_slate.md": {"The search": ["best_constant_slate"]},
    "imitation.md": {
        "BC and %BC": ["bc", "pct_bc"],
        "Slate BC": ["slate_bc"],
        "Decision Transformer": ["decision_transformer"],
    },
    "planners.md": {"Decision Diffuser": ["decision_diffuser"], "Diffusion Veteran": ["diffusion_veteran"]},
    "offline_critics.md": {
        "What they share": ["td3_bc", "iql", "awac"],
        "TD3 + BC": ["td3_bc"],
        "ReBRAC": ["rebrac"],
        "IQL": ["iql"],
        "AWAC": ["awac"],
        "CQL and Cal-QL": ["cql", "cal_ql"],
        "BCQ": ["bcq"],
        "PLAS": ["plas"],
        "FQL": ["fql"],
        "Diffusion-QL": ["diffusion_ql"],
        "SAC-N and EDAC": ["edac"],
    },
}
NAMES = {page: sorted({name for names in sections.values() for name in names}) for page, sections in PAGES.items()}
NAMES["offline_critics.md"] += ["sac_n", "fql_online"]


def node(name: str) -> dict:
    """conf/agent/<name>.yaml with what its defaults list takes from other agents."""
    loaded = OmegaConf.to_container(OmegaConf.load(CONF / "agent" / f"{name}.yaml"), resolve=False)
    assert isinstance(loaded, dict)
    others = [entry for entry in loaded.pop("defaults", []) if isinstance(entry, str) and entry != "_self_"]
    inherited = {key: value for other in others for key, value in node(other.removesuffix("@_here_")).items()}
    return inherited | loaded


def rows(page: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Each row of the tables of a page: its section, its table's header, and its cells."""
    section, header = "", []
    for line in page.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("## "):
            section = line.removeprefix("## ")
        if not line.startswith("|"):
            header = []
        elif not header:
            header = cells
        elif not set(line) <= set("|- "):
            yield section, header, cells


def test_every_agent_has_a_page() -> None:
    learning = {
        file.stem
        for file in (CONF / "agent").glob("*.yaml")
        if issubclass(get_object(node(file.stem)["_target_"]), Agent)
    }
    assert {name for names in NAMES.values() for name in names} == learning
    assert {page.name for page in AGENTS.glob("*.md")} - {"index.md"} == set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_every_metric_is_explained(page: str) -> None:
    explained = {
        name
        for _, header, cells in rows(AGENTS / page)
        if header[0] == "column of metrics.csv" and cells[-1]
        for name in re.findall(r"`([^`]+)`", cells[0])
    }
    logged = {term for name in NAMES[page] for term in get_object(node(name)["_target_"]).TERMS}
    assert explained == logged


@pytest.mark.parametrize("page", PAGES)
def test_defaults_are_those_of_conf(page: str) -> None:
    checked = 0
    for section, header, cells in rows(AGENTS / page):
        names = re.findall(r"`([^`]+)`", cells[0])
        if header[0] != "setting" or section not in PAGES[page] or not names or not cells[1]:
            continue
        agents = PAGES[page][section]
        values = re.split(r", (?![^\[]*\])", cells[1])
        if len(values) < len(names):  # one for all
            values = values * len(names)
        for index, name in enumerate(names):
            for place, agent in enumerate(agents):
                several = len(names) == 1 and len(values) == len(agents) > 1  # a value for each agent
                told, value = values[place if several else index], node(agent)[name]
                if told.startswith("`"):  # of another setting
                    assert value == "${" + told.strip("`") + "}", f"{page}: {agent}.{name}"
                    continue
                expected = yaml.safe_load(told)
                if isinstance(expected, str) and re.fullmatch(r"\d+e-\d+", expected):
                    expected = float(expected)  # as OmegaConf reads it
                assert value == expected, f"{page}: {agent}.{name} is {value}, not {told}"
                checked += 1
    assert checked >= 4
