"""hydra/sweeper=tune: Optuna proposes the jobs, and slaterl's launchers run them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class Tune(Sweeper):
    """Maximise the validation return. Job k of the sweep is trial k of the study.

    A command resumes the trials that an earlier one left running, and then adds trials until there are `trials`.
    A trial that fails counts as failed, and the others continue.

    Args:
        trials, batch, startup, prune, seed, params: see conf/hydra/sweeper/tune.yaml.
    """

    def __init__(
        self, trials: int, batch: int, startup: int, prune: bool, seed: int, params: dict[str, str] | None
    ) -> None:
        self.trials, self.batch, self.startup, self.prune, self.seed = trials, batch, startup, prune, seed
        self.params = params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        from slaterl.errors import UserError
        from slaterl.sweeps import study_page
        from slaterl.sweeps.launch import refuse
        from slaterl.sweeps.study import Study, space_of

        assert self.config is not None and self.hydra_context is not None and self.launcher is not None
        folder = Path(self.config.hydra.sweep.dir)
        given = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        with ExitStack() as stack:
            try:
                self._check_settings()
                parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
                fixed, space = space_of(parser.parse_overrides(given))
                study = Study(folder, fixed, space, seed=self.seed, startup=self.startup)
                self._check_job(study.example())
                stack.enter_context(study.running())
            except UserError as error:
                refuse(self, error)
            before = len(study.ended())
            OmegaConf.save(self.config, folder / "multirun.yaml")
            while batch := study.left_running() or study.ask(min(self.batch, self.trials - study.count())):
                for group in _consecutive(batch):
                    returns = self.launcher.launch([study.overrides(number) for number in group], group[0])
                    for number, returned in zip(group, returns, strict=True):
                        study.tell(number, _value(returned))
                study_page.write(study)
            study_page.write(study)
        study_page.show(study)
        print(folder)
        new = study.ended()[before:]
        if new and not any(state in ("complete", "pruned") for state in new):
            sys.exit(1)

    def _check_settings(self) -> None:
        from slaterl.errors import UserError

        for name in ("trials", "batch", "startup"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"hydra.sweeper.{name}={value}: expected a whole number from 1 on")

    def _check_job(self, overrides: Sequence[str]) -> None:
        """Report mistakes now, and not in every trial."""
        from slaterl.config.check import check_config, keys_of
        from slaterl.errors import UserError

        assert self.config is not None and self.hydra_context is not None
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        if config.stage.name not in ("online", "offline"):
            raise UserError(f"stage={config.stage.name}: only stage=online and offline have a validation to tune by")
        own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        check_config(own, keys_of(overrides))
        if own.stage.name == "offline" and own.offline.validation == "none":
            raise UserError("offline.validation=none: a study needs validations; use user_model or fqe")


def _consecutive(numbers: Sequence[int]) -> list[list[int]]:
    """Split rising numbers where one is missing, because a launcher numbers its jobs without gaps."""
    groups: list[list[int]] = []
    for number in numbers:
        if groups and number == groups[-1][-1] + 1:
            groups[-1].append(number)
        else:
            groups.append([number])
    return groups


def _value(returned: JobReturn) -> float | None:
    """Return the validation return of a job; None if it failed or was pruned."""
    return returned._return_value if returned.status == JobStatus.COMPLETED else None
