"""Draws instead of the argmax: their frequencies, where they apply, and what they leave alone."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from slaterl.agents.base import RandomLatentPolicy
from slaterl.agents.noisy import NoisyPolicy
from slaterl.config.build import make, plain
from slaterl.rankers.base import Ranker
from slaterl.rankers.embedding_space import KHeadArgmax, TopK
from slaterl.rollout import rollout
from slaterl.runs.products import product_of
from slaterl.seeds import seeded_weights, stream
from tests.helpers import compose_config, tiny_env, tiny_gems, tiny_sac, tiny_transformer

FEW, SLOTS, DRAWS = 4, 2, 40_000


def small(kind: str, unique: bool, temperature: float) -> Ranker:
    """A ranker of two slots and four items, whose scores differ by about 1."""
    sizes = dict(num_items=FEW, slate_size=SLOTS, unique=unique, temperature=temperature)
    if kind == "gems":
        return tiny_gems(**sizes)
    if kind == "gems_transformer":
        return tiny_transformer(**sizes)
    with seeded_weights(2, "items"):
        items = torch.randn(FEW, 3)
    target = {"top_k": TopK, "k_head_argmax": KHeadArgmax}[kind]
    return target(item_embeddings=items, slate_size=SLOTS, unique=unique, temperature=temperature)


def scores_of(ranker: Ranker, latent: Tensor, before: Tensor) -> Tensor:
    """Scores [4] of the items for the slot after the items `before`, for one latent [1, A]."""
    slot = len(before)
    if isinstance(ranker, TopK):
        return ranker.scores(latent)[0, 0]
    if isinstance(ranker, KHeadArgmax):
        return ranker.scores(latent)[0, slot]
    slate = torch.cat([before, before.new_zeros(SLOTS - slot)]).unsqueeze(0)
    return ranker.decode(latent, slate)[0][0, slot] @ ranker.item_embeddings.T


KINDS = ["gems", "gems_transformer", "k_head_argmax", "top_k"]
CASES = [(kind, unique) for kind in KINDS for unique in (False, True) if unique or kind != "top_k"]


@pytest.mark.parametrize(("kind", "unique"), CASES)
def test_frequencies_are_those_of_the_softmax(kind: str, unique: bool) -> None:
    ranker = small(kind, unique, temperature=1.5)
    latent = 0.7 * torch.randn(1, ranker.action_dim, generator=stream(1, "latent"))
    with torch.no_grad():
        slates = ranker.serve(latent.expand(DRAWS, -1), stream(0, "draws"))
        for slate in map(torch.tensor, itertools.product(range(FEW), repeat=SLOTS)):
            expected = 1.0
            for slot, item in enumerate(slate):
                scores = scores_of(ranker, latent, slate[:slot]) / 1.5
                if unique:
                    scores[slate[:slot]] = -torch.inf
                expected *= scores.softmax(0)[item].item()
            found = (slates == slate).all(1).double().mean().item()
            assert found == pytest.approx(expected, abs=4 * (expected * (1 - expected) / DRAWS) ** 0.5 + 1e-9)


@pytest.mark.parametrize(("kind", "unique"), CASES)
def test_a_small_temperature_is_the_argmax(kind: str, unique: bool) -> None:
    ranker = small(kind, unique, temperature=1e-7)
    latent = 3 * torch.randn(500, ranker.action_dim, generator=stream(1, "latent"))
    with torch.no_grad():
        shown = ranker.rank(latent)
        assert torch.equal(ranker.serve(latent, stream(0, "draws")), shown)
        assert len(shown.unique(dim=0)) > 2
        ranker.temperature = 1.0
        assert not torch.equal(ranker.serve(latent, stream(0, "draws")), shown)


@pytest.mark.parametrize("kind", KINDS)
def test_no_draws_without_a_generator_or_a_temperature(kind: str) -> None:
    warm, cold = small(kind, True, temperature=1.0), small(kind, True, temperature=0.0)
    latent = torch.randn(50, warm.action_dim, generator=stream(1, "latent"))
    generator = stream(0, "draws")
    with torch.no_grad():
        assert torch.equal(warm.serve(latent, None), cold.rank(latent))
        assert torch.equal(cold.serve(latent, generator), cold.rank(latent))
    assert torch.equal(generator.get_state(), stream(0, "draws").get_state()), "no number was drawn"
    assert warm.fingerprint() == cold.fingerprint()


def test_agents_draw_where_they_explore() -> None:
    warm, cold = (tiny_sac(ranker=tiny_gems(temperature=t)) for t in (2.0, 0.0))
    warm.explores = cold.explores = False
    assert warm.stochastic and not cold.stochastic
    env = tiny_env()

    def served(policy, deterministic: bool) -> Tensor:
        return rollout(policy, env, 8, generator=stream(0, "users"), deterministic=deterministic).slates

    greedy = served(cold.policy(), True)
    assert torch.equal(served(warm.policy(stream(1, "exploration")), True), greedy)
    # the same actions, decoded by draws
    warm.action = lambda state, generator: cold.action(state, None)
    drawn = served(warm.policy(stream(1, "exploration")), False)
    assert torch.equal(drawn, served(warm.policy(stream(1, "exploration")), False))
    assert not torch.equal(drawn, greedy)


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_random_and_noisy_policies_draw(temperature: float) -> None:
    ranker = tiny_gems(temperature=temperature)
    env = tiny_env()
    random = RandomLatentPolicy(ranker, stream(1, "random"))
    noisy = NoisyPolicy(
        tiny_sac(ranker=ranker).policy(stream(2, "exploration")),
        noise=0.5, epsilon=0.0, ranker=ranker, num_items=env.num_items, generator=stream(3, "noise"),
    )  # fmt: skip
    for policy in (random, noisy):
        data = rollout(policy, env, 8, generator=stream(0, "users"), deterministic=False)
        ranked = ranker.rank(ranker.to_latent(data.actions.flatten(0, 1)))
        assert torch.equal(ranked, data.slates[:, 1:].flatten(0, 1).long()) == (temperature == 0)


@pytest.mark.parametrize("name", ["gems", "k_head_argmax", "top_k"])
def test_rankers_of_older_checkpoints_have_none(name: str) -> None:
    node = plain(compose_config(f"ranker={name}").ranker)
    del node["temperature"]
    given = {"num_items": FEW} if name == "gems" else {"item_embeddings": torch.ones(FEW, 3)}
    assert make(node, "ranker", slate_size=SLOTS, **given).temperature == 0


def test_the_temperature_is_part_of_an_agents_run_and_not_of_its_ranker() -> None:
    for ranker in ("gems", "top_k"):
        digests = {
            stage: [
                product_of(compose_config(f"stage={stage}", f"ranker={ranker}", *more), stage).run.digest
                for more in ([], ["ranker.temperature=0"], ["ranker.temperature=0.5"], ["ranker.temperature=1"])
            ]
            for stage in (("online", "pretrain") if ranker == "gems" else ("online",))
        }
        assert digests["online"][0] == digests["online"][1] and len(set(digests["online"])) == 3
        assert len(set(digests.get("pretrain", [0]))) == 1
