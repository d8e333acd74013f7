"""Labels that are read back by an encoder that shrinks and shifts them, against the actions that made the slates."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from slaterl.agents.offline.base import OfflineAgent, with_actions, with_labels
from slaterl.agents.offline.calibration import calibrate, overlap, read_latents
from slaterl.agents.offline.recorded import OfflineData
from slaterl.beliefs.mean import MeanBelief
from slaterl.data.trajectories import Trajectories
from slaterl.evaluation.fqe import with_places
from slaterl.rankers.base import Ranker
from slaterl.seeds import stream

WIDTH, STEP, ITEMS = 3, 0.25, 64


class Rounding(Ranker):
    """Slot i shows input i, rounded to steps. The encoder returns two fifths of it, shifted: nearer to its own data."""

    PRETRAINED = True

    def __init__(self) -> None:
        super().__init__(WIDTH, unique=False)
        self.set_box(torch.full((WIDTH,), -8.0), torch.full((WIDTH,), 8.0))

    def rank(self, latent: Tensor) -> Tensor:
        return (latent / STEP + ITEMS / 2).floor().clamp(0, ITEMS - 1).long()

    def encode(self, slate: Tensor, clicks: Tensor) -> Tensor:
        return 0.4 * (slate - ITEMS / 2 + 0.5) * STEP - 0.5


def inputs(count: int = 4000) -> Tensor:
    noise = torch.randn(count, WIDTH, generator=stream(0, "inputs"))
    return torch.tensor([1.5, -1.0, 0.5]) + noise * torch.tensor([0.5, 0.8, 1.2])


def test_a_behaviours_actions_are_found_again() -> None:
    ranker, latent = Rounding(), inputs()
    slates = ranker.rank(latent)
    read = read_latents(ranker, slates)
    found = calibrate(ranker, slates, stream(1, "calibration"))
    labels = read @ found.weight + found.bias
    assert (read.mean(0) - latent.mean(0)).abs().max() > 0.5  # as it is without
    torch.testing.assert_close(labels.mean(0), latent.mean(0), atol=0.05, rtol=0)
    torch.testing.assert_close(labels.std(0), latent.std(0), atol=0.05, rtol=0)
    assert found.match_before < 0.5 and found.match > 0.9


def test_an_exact_encoder_needs_no_correction() -> None:
    ranker = Rounding()
    ranker.encode = lambda slate, clicks: (slate - ITEMS / 2 + 0.5) * STEP  # type: ignore[method-assign]
    found = calibrate(ranker, ranker.rank(inputs()), stream(1, "calibration"))
    assert found.match_before > 0.9 and found.match == pytest.approx(found.match_before, abs=0.03)
    torch.testing.assert_close(found.weight, torch.eye(WIDTH), atol=0.05, rtol=0)


@pytest.mark.parametrize("seed", range(3))
def test_calibration_never_explains_less(seed: int) -> None:
    """Random slates, which no Gaussian makes."""
    slates = torch.randint(ITEMS // 2, (500, WIDTH), generator=stream(seed, "slates")) * 2
    found = calibrate(Rounding(), slates, stream(seed, "calibration"))
    assert found.match >= found.match_before


def test_one_slate_is_a_behaviour_too() -> None:
    ranker = Rounding()
    found = calibrate(ranker, ranker.rank(inputs(1)).expand(50, -1), stream(1, "calibration"))
    assert found.weight.isfinite().all() and found.bias.isfinite().all()


def test_overlap_counts_each_slot_by_itself() -> None:
    first, second = torch.tensor([[0, 1], [0, 1]]), torch.tensor([[0, 0], [1, 0]])
    assert overlap(first, first) == 1.0
    assert overlap(first, second) == 0.25  # half of slot 0, nothing of slot 1


def test_labels_are_calibrated_on_the_turns_of_sessions() -> None:
    ranker, latent = Rounding(), inputs(240)
    slates = ranker.rank(latent).view(40, 6, WIDTH)
    slates = torch.cat([torch.zeros_like(slates[:, :1]), slates], 1)
    data = Trajectories(slates, torch.zeros_like(slates), lengths=torch.full((40,), 4))
    data.slates[:, 5:] = 7  # padding
    labels = with_labels(data, ranker)
    data.slates[:, 5:] = 9
    again = with_labels(data, ranker)
    assert labels.actions is not None and again.actions is not None
    assert torch.equal(labels.actions[:, :4], again.actions[:, :4])
    there = ranker.to_latent(labels.actions[:, :4]).flatten(0, 1)
    torch.testing.assert_close(there.mean(0), latent.view(40, 6, WIDTH)[:, :4].mean((0, 1)), atol=0.2, rtol=0)
    plain = with_actions(data, ranker).actions
    assert plain is not None and not torch.allclose(plain[:, :4], labels.actions[:, :4], atol=0.01)


def test_rankers_that_ignore_the_scale_of_actions_are_not_calibrated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rounding, "PRETRAINED", False)
    ranker = Rounding()
    slates = ranker.rank(inputs(70)).view(10, 7, WIDTH)
    data = Trajectories(slates, torch.zeros_like(slates))
    labels, plain = with_labels(data, ranker).actions, with_actions(data, ranker).actions
    assert labels is not None and plain is not None and torch.equal(labels, plain)


class Labelled(OfflineAgent):
    """Prepares data and learns nothing."""

    TERMS = ()

    def __init__(self) -> None:
        sizes = dict(num_items=ITEMS, slate_size=WIDTH, item_dim=2, hidden_dim=2, decay=0.9)
        super().__init__(Rounding(), lambda: MeanBelief(**sizes), stream(0, "updates"))


def batches_of(agent: Labelled, data: Trajectories) -> OfflineData:
    return OfflineData(data, agent, max_steps=1, batch_size=3, batches=stream(0, "batches"))


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("old", [False, True])
def test_a_resumed_run_learns_the_labels_that_its_checkpoint_has_the_box_of(
    recorded: bool, old: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine sums in another order, so another round of the calibration can show the items best."""
    ranker, latent = Rounding(), inputs(280).view(40, 7, WIDTH)
    slates = ranker.rank(latent)
    data = Trajectories(slates, torch.zeros_like(slates))
    data.actions = ranker.to_action(latent[:, 1:]) if recorded else None
    first = Labelled()
    before = batches_of(first, data)
    next(iter(before.train_dataloader()))
    saved = {"learner": first.state_dict(), "data": before.state_dict()}
    if old:  # of a version that did not keep the calibration
        del saved["data"]["prepared"]
    else:
        monkeypatch.setattr("slaterl.agents.offline.base.calibrate", lambda *given: pytest.fail("computed again"))
        monkeypatch.setattr("slaterl.agents.offline.base._spread", lambda *given: (torch.ones(3), torch.ones(3)))
    second = Labelled()
    after = batches_of(second, data)
    second.load_state_dict(saved["learner"])
    after.load_state_dict(saved["data"])
    assert torch.equal(after.data.actions, before.data.actions)
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
    again = after.state_dict()["prepared"]  # it can be resumed once more
    assert all(torch.equal(value, again[name]) for name, value in before.state_dict()["prepared"].items())


def test_slates_that_the_encoder_places_beside_the_box_are_told_apart() -> None:
    """Fitted Q evaluation and the context of the Decision Transformer read slates, whose labels are calibrated."""
    ranker, latent = Rounding(), inputs(280).view(40, 7, WIDTH)
    slates = ranker.rank(latent)
    agent = Labelled()
    agent.prepare(Trajectories(slates, torch.zeros_like(slates)))
    shown = slates[:, 1:].flatten(0, 1)
    clipped, placed = agent.ranker.action_of(shown), agent.ranker.place_of(shown)
    assert (clipped[:, 0] == -1).float().mean() > 0.5  # whatever they show
    assert torch.equal(torch.where(placed.abs() <= 1, placed, clipped), clipped)
    for slot in range(WIDTH):
        assert len(placed[:, slot].unique()) == len(shown[:, slot].unique())


def test_a_dimension_without_width_has_one_place() -> None:
    ranker = Rounding()
    ranker.set_box(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([1.0, 2.0, 2.0]))
    placed = ranker.place_of(torch.tensor([[3, 40, 40], [60, 40, 41]]))
    assert placed.isfinite().all() and (placed[:, 0] == 0).all() and placed[0, 2] != placed[1, 2]


def test_fitted_q_evaluation_reads_more_than_the_box_holds() -> None:
    ranker, latent = Rounding(), inputs(280).view(40, 7, WIDTH)
    slates = ranker.rank(latent)
    data = Trajectories(slates, torch.zeros_like(slates))
    agent = Labelled()
    agent.prepare(data)
    found = with_places(data, agent.ranker).actions
    assert found is not None and found.abs().max() > 1.5
