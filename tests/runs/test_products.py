"""What is missing is made, once, and naming it costs nothing."""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from slaterl.agents.base import Agent
from slaterl.config import dataset
from slaterl.envs.topic_rec import TopicRec
from slaterl.errors import UserError
from slaterl.run import run_stage
from slaterl.runs.files import read_json, write_json
from slaterl.runs.products import Product, find_or_make, product_of
from slaterl.runs.run import Run
from tests.helpers import compose_config

SIZES = """scale=smoke device=cpu threads=1 env.num_items=60 env.slate_size=4 env.episode_length=7 max_steps=30
save_every_n_steps=25 val_users=3 test_users=3 logged_data.trajectories=20 collect.trajectories=8 offline.max_steps=2
offline.val_every_n_steps=2 offline.val_users=3 offline.test_users=3"""
SMALL = SIZES.split()
HIGHEST, MEDIUM = "matmul_precision=highest", "matmul_precision=medium"


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """How many agents of each class, simulators and compositions there were."""
    count: Counter = Counter()

    def counting(owner: Any, name: str, key: Any) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
            count[key(self)] += 1
            return original(self, *args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    counting(Agent, "__init__", lambda agent: type(agent).__name__)
    counting(TopicRec, "__init__", lambda env: "TopicRec")
    counting(dataset, "compose", lambda config: "compose")
    dataset._composed.cache_clear()
    return count


def test_naming_builds_nothing(built: Counter, tmp_path: Path) -> None:
    cfg = compose_config(*SMALL, "stage=offline", "agent=td3_bc", f"paths.root={tmp_path / 'home'}")
    assert product_of(cfg, "offline").run.name.startswith("td3_bc-gems")
    assert built == {"compose": 1}  # of the agent that the dataset is collected with
    assert not (tmp_path / "home").exists()


def test_each_agent_is_built_once(built: Counter, tmp_path: Path) -> None:
    """Of each class one that is trained and one whose best checkpoint is tested; one SAC that collects the data."""
    run_stage(compose_config(*SMALL, "stage=offline", "agent=td3_bc", f"paths.root={tmp_path}"))
    assert built["SAC"] == 3 and built["TD3BC"] == 2 and built["compose"] == 1
    # one for the whole configuration, and one for each checkpoint, whose environment can be another one
    assert built["TopicRec"] <= 4


@pytest.mark.parametrize(
    "command",
    [
        "stage=pretrain",
        "stage=mf item_embeddings=mf",
        "stage=online",
        "stage=online agent=dqn",
        "stage=collect dataset=random",
        f"stage=collect dataset=file dataset.path={__file__}",
        "stage=offline agent=td3_bc",
        "stage=evaluate agent=random",
    ],
)
def test_products_of_another_precision_are_others(command: str) -> None:
    default, highest, medium = (_named(command, *more) for more in ([], [HIGHEST], [MEDIUM]))
    assert default.run.path == highest.run.path != medium.run.path
    for name, part in medium.inputs.items():  # an agent of medium acts through a ranker of medium
        same = part.run.path == highest.inputs[name].run.path
        assert same == (part.run.stage == "log_data")


def test_both_precisions_learn_from_the_same_logged_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _named("stage=log_data", MEDIUM).run.path == _named("stage=log_data").run.path
    seen: set[tuple[str, str]] = set()

    def spy(name: str) -> None:
        original = getattr(TopicRec, name)

        def spied(*args: Any, **kwargs: Any) -> Any:
            seen.add((name, torch.get_float32_matmul_precision()))
            return original(*args, **kwargs)

        monkeypatch.setattr(TopicRec, name, spied)

    spy("reset")
    spy("step")
    run_stage(compose_config(*SMALL, "stage=log_data", MEDIUM, f"paths.root={tmp_path}"))
    assert seen == {("reset", "highest"), ("step", "highest")}
    assert torch.get_float32_matmul_precision() == "medium"
    (file,) = tmp_path.glob("log_data/*/*/manifest.json")
    assert read_json(file)["config"]["matmul_precision"] == "medium"


def _named(command: str, *more: str) -> Product:
    cfg = compose_config(*SMALL, *command.split(), *more)
    return product_of(cfg, cfg.stage.name)


def product(
    root: Path, name: str, calls: list[str], inputs: dict[str, Product] | None = None, wrong: bool = False
) -> Product:
    def begin() -> Any:
        calls.append(f"begin {name}")
        if wrong:
            raise UserError("wrong")

        def make() -> dict[str, Any]:
            calls.append(f"make {name}")
            return {"name": name}

        return make

    run = Run(root, "stage", "env", name, {"name": name}, products=("result.json",))
    return Product(run, OmegaConf.create({}), begin, inputs or {}, show=lambda made: calls.append(f"show {name}"))


def test_each_product_is_made_with_the_threads_in_its_manifest(tmp_path: Path) -> None:
    """Both resume by threads=auto, which found two free cores; the agent began with one thread."""
    seen: dict[str, int] = {}

    def having(name: str, threads: int, inputs: dict[str, Product]) -> Product:
        def make() -> dict[str, Any]:
            seen[name] = torch.get_num_threads()
            return {}

        run = Run(tmp_path, "stage", "env", name, {"name": name})
        run.path.mkdir(parents=True)
        write_json(run.path / "manifest.json", {"status": "interrupted", "threads": threads})
        (run.path / "last.ckpt").touch()
        return Product(run, OmegaConf.create({"threads": "auto"}), lambda: make, inputs)

    torch.set_num_threads(2)
    ranker = having("ranker", 2, {})
    find_or_make(having("agent", 1, {"ranker": ranker}))
    assert seen == {"ranker": 2, "agent": 1} and torch.get_num_threads() == 2


def test_inputs_are_made_first_and_once(tmp_path: Path) -> None:
    calls: list[str] = []
    log = product(tmp_path, "log", calls)
    ranker = product(tmp_path, "ranker", calls, {"log": log})
    agent = product(tmp_path, "agent", calls, {"ranker": ranker, "log": log})
    assert find_or_make(agent).result() == {"stage": "stage", "env": "env", "name": "agent"}
    assert [call for call in calls if not call.startswith("show")] == [
        "begin agent", "begin ranker", "begin log", "make log", "make ranker", "make agent",
    ]  # fmt: skip
    calls.clear()
    find_or_make(agent)
    assert calls == ["show agent"]


def test_wrong_setting_of_an_input_makes_nothing(tmp_path: Path) -> None:
    calls: list[str] = []
    log = product(tmp_path / "home", "log", calls, wrong=True)
    with pytest.raises(UserError, match="wrong"):
        find_or_make(product(tmp_path / "home", "ranker", calls, {"log": log}))
    assert not (tmp_path / "home").exists()


def test_inputs_of_what_is_finished_are_not_needed(tmp_path: Path) -> None:
    calls: list[str] = []
    find_or_make(product(tmp_path, "ranker", calls))
    calls.clear()
    find_or_make(product(tmp_path, "ranker", calls, {"log": product(tmp_path, "log", calls)}))
    assert calls == ["show ranker"]
