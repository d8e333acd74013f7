"""A study of Optuna in the folder of a sweep: what is tuned, which trials there are, and how they ended."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.types import RunMode

from slaterl.console import listening, note
from slaterl.data.formats.checks import require_package
from slaterl.errors import Pruned, UserError
from slaterl.sweeps.records import read_job

FILE = "study.journal"  # in the folder of the sweep
NAME = "study"
SCORE = "val/return"  # what is reported while a trial runs; that with exploration begins so, too


def space_of(overrides: Sequence[Override]) -> tuple[list[str], dict[str, Any]]:
    """Split overrides into those that all trials share, and Optuna's distributions of those that are tuned.

    Of several overrides of a key the last one counts. The values a,b and choice(a,b) are choices without an order,
    as those of range are. interval(a,b) is a range of numbers, int(interval(a,b)) of whole numbers, and
    tag(log,interval(a,b)) one on a logarithmic scale.

    Raises:
        UserError: Optuna is missing, or nothing is tuned, or an interval is empty.
    """
    require_package("optuna", "tune", "hydra/sweeper=tune")
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    fixed: dict[str, str] = {}
    space: dict[str, Any] = {}
    for override in overrides:
        key, value = override.get_key_element(), override.value()
        fixed.pop(key, None)
        space.pop(key, None)
        try:
            if isinstance(value, IntervalSweep):
                kind = IntDistribution if isinstance(value.start, int) else FloatDistribution
                space[key] = kind(value.start, value.end, log="log" in value.tags)  # type: ignore[arg-type]
            elif override.is_sweep_override():
                space[key] = CategoricalDistribution(list(override.sweep_string_iterator()))
            else:
                fixed[key] = str(override.input_line)
        except ValueError as error:
            raise UserError(f"{override.input_line}: cannot be tuned ({error})") from error
    if not space:
        raise UserError("hydra.sweeper.params: nothing to tune; give a setting several values, or interval(a,b)")
    return list(fixed.values()), space


class Study:
    """The trials in a folder. Their numbers are those of the sweep's jobs.

    Args:
        folder: of the sweep.
        fixed, space: see space_of.
        seed: of the proposals.
        startup: number of random trials.
    """

    def __init__(
        self, folder: Path, fixed: Sequence[str], space: Mapping[str, Any], *, seed: int, startup: int
    ) -> None:
        self.folder, self.fixed, self.space = folder, list(fixed), dict(space)
        self.seed, self.startup = seed, startup

    def example(self) -> list[str]:
        """Return the overrides of a possible trial."""
        values = {key: getattr(one, "choices", None) or [one.low] for key, one in self.space.items()}
        return [*self.fixed, *(f"{key}={several[0]}" for key, several in values.items())]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Open the study, or make it, and keep other commands out of it within the block.

        Raises:
            UserError: another command is running it, or its trials have other settings.
        """
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock(self.folder / ".study.lock").acquire(timeout=0)
        except Timeout:
            raise UserError(f"hydra.sweep.dir={self.folder}: another command runs this study") from None
        with lock:
            self._open()
            yield

    def _open(self) -> None:
        import optuna

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            storage = _storage(self.folder)
            self.optuna = optuna.create_study(
                storage=storage, study_name=NAME, direction="maximize", load_if_exists=True
            )
            # another seed for each command, so that a resumed study does not propose its first trials again
            self.optuna.sampler = optuna.samplers.TPESampler(
                seed=self.seed + self.count(), n_startup_trials=self.startup, constant_liar=True
            )
        before = self.optuna.user_attrs.get("fixed", self.fixed)
        if sorted(before) != sorted(self.fixed):
            differ = " ".join(sorted(set(before) ^ set(self.fixed)))
            raise UserError(
                f"hydra.sweep.dir={self.folder}: its trials have other settings ({differ}); choose another folder"
            )
        self._check_space()
        self.optuna.set_user_attr("fixed", self.fixed)
        if self.count():
            note(f"the study has {self.count()} trials: {self.folder}")

    def _check_space(self) -> None:
        """Refuse a space that Optuna would refuse in the middle of a proposal, which leaves a trial unfinished."""
        from optuna.distributions import check_distribution_compatibility

        for trial in self.trials:
            for key in trial.distributions.keys() & self.space.keys():
                try:
                    check_distribution_compatibility(trial.distributions[key], self.space[key])
                except ValueError:
                    raise UserError(
                        f"hydra.sweep.dir={self.folder}: its trials chose {key} in another way; "
                        "only the ends of an interval may change, so choose another folder"
                    ) from None

    @property
    def trials(self) -> list[Any]:
        return self.optuna.get_trials(deepcopy=False)

    def count(self) -> int:
        return len(self.trials)

    def left_running(self) -> list[int]:
        """Return the trials that an earlier command began and did not end.

        A proposal that was cut short lacks settings. It is recorded as failed, because it would run with the defaults.
        """
        from optuna.trial import TrialState

        for trial in self.trials:
            if not trial.state.is_finished() and not self.space.keys() <= trial.params.keys():
                self.optuna.tell(trial.number, state=TrialState.FAIL)
        return [trial.number for trial in self.trials if not trial.state.is_finished()]

    def ended(self) -> list[str]:
        """Return how trials ended: complete, pruned or fail."""
        return [trial.state.name.lower() for trial in self.trials if trial.state.is_finished()]

    def ask(self, count: int) -> list[int]:
        """Propose so many trials, and return their numbers."""
        return [self.optuna.ask(self.space).number for _ in range(count)]

    def overrides(self, number: int) -> list[str]:
        return [*self.fixed, *(f"{key}={value}" for key, value in self.trials[number].params.items())]

    def tell(self, number: int, value: float | None) -> None:
        """Record how a trial ended. None: it was pruned if its job says so, else it failed."""
        from optuna.trial import TrialState

        if value is not None:
            self.optuna.tell(number, value)
        else:
            pruned = read_job(self.folder / str(number)).state == "pruned"
            self.optuna.tell(number, state=TrialState.PRUNED if pruned else TrialState.FAIL)


def as_trial(hydra: Any) -> AbstractContextManager[None]:
    """Report the job that `hydra` describes to its study, within the block; do nothing if it is no trial."""
    if hydra.mode != RunMode.MULTIRUN or hydra.runtime.choices.get("hydra/sweeper") != "tune":
        return nullcontext()
    return reporting(Path(hydra.sweep.dir), hydra.job.num, prune=hydra.sweeper.prune, startup=hydra.sweeper.startup)


@contextmanager
def reporting(sweep: Path, number: int, *, prune: bool, startup: int) -> Iterator[None]:
    """Within the block, report each validation of a trial to its study.

    Raises:
        Pruned: the best validation so far is below the median of the other trials at the same step.
    """
    import optuna

    storage = _storage(sweep)
    study = optuna.load_study(storage=storage, study_name=NAME)
    study.pruner = optuna.pruners.MedianPruner(n_startup_trials=startup) if prune else optuna.pruners.NopPruner()
    study_id = storage.get_study_id_from_name(NAME)
    trial = optuna.trial.Trial(study, storage.get_trial_id_from_study_id_trial_number(study_id, number))
    reported = set(study.get_trials(deepcopy=False)[number].intermediate_values)

    def hear(facts: dict[str, Any]) -> None:
        if not str(facts.get("scored", "")).startswith(SCORE) or facts["done"] in reported:
            return  # the loss of a ranker, or a validation before the run was resumed
        step, score = facts["done"], facts["score"]
        reported.add(step)
        trial.report(score, step)
        if trial.should_prune():
            raise Pruned(f"pruned: its best validation up to step {step:,} is below the median of the other trials")

    with listening(hear):
        yield


def _storage(folder: Path) -> Any:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(str(folder / FILE)))
