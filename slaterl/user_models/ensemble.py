"""An ensemble of user models, each trained on a bootstrap sample of the sessions and stopped on its own."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from slaterl.data.groups import bootstrap, boundary, shuffled
from slaterl.data.trajectories import Trajectories
from slaterl.errors import UserError
from slaterl.seeds import stream
from slaterl.training.epochs import Epochs
from slaterl.training.learner import Learner
from slaterl.user_models.click_model import ClickModel, losses
from slaterl.user_models.quality import shown_turns

SESSIONS = 256  # predicted at a time

Losses = tuple[float, float, float]  # total, click and leave


class Ensemble(Learner):
    """K user models. A member whose held-out loss has not fallen for `patience` validations stops learning.

    Attributes:
        members: as they learn.
        best: copies of the members with the weights of their best validation.
        lowest: total, click and leave loss of each of `best` on the held-out sessions.
        stale: validations of each member since then.
    """

    TERMS: ClassVar = ("loss/total", "loss/click", "loss/leave")
    VAL_TERMS: ClassVar = ("val/loss/total", "val/loss/click", "val/loss/leave", "val/loss/last", "val/learning")

    def __init__(self, members: Sequence[ClickModel], *, lr: float, patience: int) -> None:
        super().__init__()
        self.members, self.best = nn.ModuleList(members), nn.ModuleList(copy.deepcopy(list(members)))
        self.best.requires_grad_(False)
        self.patience = patience
        self.lowest: list[Losses] = [(math.inf,) * 3] * len(members)
        self.stale = [0] * len(members)
        for number, member in enumerate(members):
            self.add_optimizer(f"member {number}", member, lr=lr)

    @torch.no_grad()
    def start_at(self, data: Trajectories) -> None:
        """Begin all members with the click rates of the ranks."""
        rates = shown_turns(data)[1].float().mean(0)
        for member in (*self.members, *self.best):
            member.start_at(rates)

    def update(self, batch: Sequence[Trajectories]) -> dict[str, Tensor]:
        """Take one step of each member that still learns on its own sessions, one batch for each member."""
        found = []
        for number in self.learning():
            click, leave = losses(self.members[number](batch[number]), batch[number])
            total = click + leave / batch[number].slates.shape[2]  # the likelihood of a turn, per slot
            self.minimise(f"member {number}", total)
            found.append(torch.stack([total, click, leave]).detach())
        return dict(zip(self.TERMS, torch.stack(found).mean(0), strict=True))

    def learning(self) -> list[int]:
        """Return the numbers of the members that have not stopped."""
        return [number for number, stale in enumerate(self.stale) if stale < self.patience]

    @torch.no_grad()
    def validate(self, held_out: Trajectories) -> dict[str, float]:
        """Measure each member that learns on held-out sessions, and keep its weights if they are its best.

        Returns:
            mean losses of `best`, the mean loss of the members as they are, and how many of them still learn.
        """
        last = []
        for number in self.learning():
            found = self._held_out(self.members[number], held_out)
            last.append(found[0])
            if found[0] < self.lowest[number][0]:
                self.lowest[number], self.stale[number] = found, 0
                self.best[number].load_state_dict(self.members[number].state_dict())
            else:
                self.stale[number] += 1
        terms = [sum(column) / len(self.lowest) for column in zip(*self.lowest, strict=True)]
        now = sum(last) / len(last) if last else math.nan
        return dict(zip(self.VAL_TERMS, [*terms, now, len(self.learning())], strict=True))

    def _held_out(self, member: nn.Module, data: Trajectories) -> Losses:
        """Return total, click and leave loss over all sessions of `data`."""
        sums, turns, known = [0.0, 0.0], 0, 0
        for start in range(0, len(data), SESSIONS):
            part = data[start : start + SESSIONS]
            of_part = part.turns if part.truncated is None else part.turns - int(part.truncated.sum())
            for place, (loss, weight) in enumerate(zip(losses(member(part), part), (part.turns, of_part), strict=True)):
                sums[place] += loss.item() * weight
            turns, known = turns + part.turns, known + of_part
        click, leave = sums[0] / turns, sums[1] / max(known, 1)
        return click + leave / data.slates.shape[2], click, leave

    @torch.no_grad()
    def chances(self, data: Trajectories) -> tuple[Tensor, Tensor | None]:
        """Return the mean probability of `best` that slots are clicked, [N, H, S], and that users leave, [N, H]."""
        clicks, leaving = [], []
        for start in range(0, len(data), SESSIONS):
            found = [member(data[start : start + SESSIONS]) for member in self.best]
            clicks.append(torch.stack([logits.clicks for logits in found]).sigmoid().mean(0))
            if found[0].leaving is not None:
                leaving.append(torch.stack([logits.leaving for logits in found]).sigmoid().mean(0))
        return torch.cat(clicks), torch.cat(leaving) if leaving else None

    def get_extra_state(self) -> dict[str, Any]:
        return {"lowest": list(self.lowest), "stale": list(self.stale)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.lowest, self.stale = [tuple(found) for found in state["lowest"]], list(state["stale"])


class Sessions(Epochs):
    """The sessions of a dataset in three parts: to train on, to stop by, and to report on.

    Each member trains on its own bootstrap sample: as many sessions as the training part, drawn with replacement. The
    pieces of one user are in one part, and are drawn together.

    Args:
        data: on the learner's device.
        holdout: share of the sessions that are not trained on. Half of them stop the training, half are the test.
        max_steps: number of updates.
        source: the setting that chose the data, for the message.

    Raises:
        UserError: there are too few sessions for three parts.
    """

    UNIT: ClassVar = "sessions"

    def __init__(
        self,
        data: Trajectories,
        learner: Ensemble,
        *,
        holdout: float,
        max_steps: int,
        batch_size: int,
        seed: int,
        source: str,
    ) -> None:
        held = max(1, round(len(data) * holdout / 2))
        # a dataset holds one behaviour after the other, and every part needs all of them
        order = shuffled(data, stream(seed, "parts of the sessions")).to(learner.device)
        mixed = data[order]
        first = boundary(mixed, held)
        second = boundary(mixed, first + held)
        if second >= len(data):
            raise UserError(
                f"{source}: too few sessions ({len(data)}); user_training.holdout={holdout} keeps {first} to stop by "
                f"and {second - first} for the test, and leaves none to train on"
                + ("; pieces of one user stay together" if data.group is not None else "")
            )
        self.held_out, self.test, self.training = mixed[:first], mixed[first:second], mixed[second:]
        count = len(self.training)
        super().__init__(learner, count, batch_size=batch_size, epochs=1, seed=seed)
        self.max_steps = max_steps
        generator = stream(seed, "bootstrap samples")
        self.samples = torch.stack([bootstrap(self.training, generator) for _ in learner.members]).to(learner.device)

    def take(self, index: Tensor) -> list[Trajectories]:
        """Return B sessions for each member: those at the places `index` of its sample."""
        return [self.training[sample[index]] for sample in self.samples]


def members_of(learner: Ensemble) -> list[ClickModel]:
    """Return the members with their best weights."""
    return cast(list[ClickModel], list(learner.best))


def sessions_of(data: Trajectories) -> Trajectories:
    """Return what a user model reads of trajectories: frames, lengths and groups, but nothing of the policies."""
    of = {name: getattr(data, name) for name in ("slates", "clicks", "lengths", "truncated", "group")}
    return Trajectories(**of)
