"""The search for the best constant slate, where the best one is known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from slaterl.config.dataset import online_cfg
from slaterl.envs.env import Env
from slaterl.envs.observation import Observation
from slaterl.errors import UserError
from slaterl.evaluation.constant_slate import CANDIDATES, PARENTS, best_constant_slate, mean_returns
from slaterl.run import run_stage
from slaterl.runs.files import read_json
from slaterl.runs.products import product_of
from slaterl.seeds import stream
from tests.helpers import compose_config, tiny_env

GOOD = (7, 11, 3)  # each in its own slot is always clicked, and nothing else is


class Locks(Env):
    """Users who click slot i if it shows the item GOOD[i]; some of them are asleep and click nothing at all."""

    def __init__(self, turns: int = 2, awake: float = 0.5) -> None:
        super().__init__(name="locks", num_items=20, slate_size=3, episode_length=turns)
        self.share = awake
        self.served: list[Tensor] = []

    def reset(self, num_users: int, *, generator: torch.Generator) -> Observation:
        self.turn, self.slates = 0, []
        self.awake = torch.rand(num_users, 1, generator=generator) < self.share
        return Observation(self.first_slate.expand(num_users, -1), torch.zeros(num_users, 3, dtype=torch.uint8))

    def step(self, slate: Tensor, *, oracle_slots: Tensor | None = None) -> tuple[Observation, Tensor, bool]:
        self.turn += 1
        self.served.append(slate)
        clicks = ((slate == torch.tensor(GOOD)) & self.awake).to(torch.uint8)
        return Observation(slate, clicks), clicks.sum(1, dtype=torch.float32), self.turn == self.episode_length


def test_finds_the_best_slate() -> None:
    """Of 8,000 slates one is the best; 256 random ones hardly contain it."""
    assert best_constant_slate(Locks(), users=5, rounds=20, seed=1).tolist() == list(GOOD)


def test_a_round_is_one_rollout_with_as_many_users_for_each_candidate() -> None:
    env = Locks()
    best_constant_slate(env, users=5, rounds=3, seed=1)
    assert [len(slates) for slates in env.served[::2]] == [5 * CANDIDATES] * 4
    assert len(env.served[-1].unique(dim=0)) <= PARENTS
    for before, after in zip(env.served[::2], env.served[1::2], strict=True):
        assert torch.equal(before, after), "a user sees one slate at every turn"
        users = before.unique(dim=0, return_counts=True)[1]
        assert (users % 5 == 0).all()  # some candidates are equal


def test_means_are_those_of_each_slate() -> None:
    slates = torch.tensor([GOOD, (0, 11, 3), (0, 0, 0)])
    found = mean_returns(Locks(), slates, 400, stream(0, "users"))
    assert found.tolist() == pytest.approx([3.0, 2.0, 0.0], abs=0.4)  # two turns, half of the users


def test_the_seed_determines_the_slate() -> None:
    first, again, other = (best_constant_slate(tiny_env(), users=3, rounds=3, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


SMALL = ["scale=smoke", "device=cpu", "threads=1", "agent=dqn", "env.num_items=60", "env.episode_length=7"]


def test_a_row_of_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And neither another name of the run nor another result of its agent."""
    results, names, tables = [], [], []
    monkeypatch.setattr("slaterl.evaluation.show.table", lambda title, header, rows: tables.append(rows))
    for root, more in (("with", ["constant_slate_users=2"]), ("without", [])):
        cfg = compose_config(*SMALL, f"paths.root={tmp_path / root}", *more)
        run_stage(cfg)
        run = product_of(cfg, "online").run
        results.append(read_json(run.path / "result.json"))
        names.append(run.path.name)
    assert names[0] == names[1]
    added = {key: value for key, value in results[0].items() if key.startswith("best_constant_")}
    assert results[0].keys() - results[1].keys() == added.keys()
    assert (
        added["best_constant_distinct_items"] == len(set(added["best_constant_slate"]))
        and added["best_constant_return"] > results[0]["random_return"]
    )
    assert results[0]["test_return"] == results[1]["test_return"]
    shown, expected = tables[0][1], f"{added['best_constant_return']:.1f} ± {added['best_constant_interval']:.1f}"
    assert (shown[0], shown[2]) == ("best constant slate", expected)
    assert [row for row in tables[0] if row != shown] == tables[1]
    capsys.readouterr()
    run_stage(compose_config(*SMALL, f"paths.root={tmp_path / 'without'}", "constant_slate_users=2"))
    assert "constant_slate_users: this run was made without the search" in capsys.readouterr().err


def test_a_row_of_the_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slaterl.evaluation.constant_slate.ROUNDS", 3)
    for root, more in (("with", ["constant_slate_users=2"]), ("without", [])):
        small = [*SMALL[:3], *SMALL[4:], "stage=collect", "dataset=random", "collect.trajectories=20"]
        run_stage(compose_config(*small, f"paths.root={tmp_path / root}", *more))
    (searched,), (plain,) = (list((tmp_path / root).glob("collect/*/*")) for root in ("with", "without"))
    assert searched.name == plain.name
    result, card = read_json(searched / "result.json"), read_json(searched / "card.json")
    reached = result["best_constant_slate_return"]
    assert reached != result["random_return"] and card["anchors"]["best_constant_slate"]["return"] == reached
    assert "best constant slate of a search" in (searched / "card.md").read_text(encoding="utf-8")
    assert "best_constant_slate_return" not in read_json(plain / "result.json")


def test_demo_searches_and_paper_does_not() -> None:
    assert compose_config("scale=demo").constant_slate_users == 10
    assert compose_config().constant_slate_users is None


@pytest.mark.parametrize("value", ["0", "1.5", "some"])
def test_bad_numbers_of_users(value: str, tmp_path: Path) -> None:
    cfg = compose_config(*SMALL, f"paths.root={tmp_path / 'home'}", f"constant_slate_users={value}")
    with pytest.raises(UserError, match=rf"^constant_slate_users={value}: expected a whole number of at least 1 or"):
        run_stage(cfg)
    assert not (tmp_path / "home").exists()


def test_finished_card_says_that_it_has_no_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The search is no part of a dataset's name, because the data stay the same."""
    small = [
        "env.num_items=60",
        "env.num_topics=5",
        "env.slate_size=4",
        "env.episode_length=7",
        "collect.trajectories=6",
    ]
    cfg = ["scale=smoke", "device=cpu", "stage=collect", "dataset=random", *small, f"paths.root={tmp_path}"]
    run_stage(compose_config(*cfg))
    assert "constant_slate_users" not in capsys.readouterr().err
    run_stage(compose_config(*cfg, "constant_slate_users=1"))
    assert "constant_slate_users: this run was made without the search" in capsys.readouterr().err


def test_search_for_a_card_is_not_made_for_its_online_run_too() -> None:
    cfg = compose_config("stage=collect", "dataset=expert", "constant_slate_users=5")
    assert online_cfg(cfg).constant_slate_users is None and cfg.constant_slate_users == 5
