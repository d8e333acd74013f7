"""The TensorBoard logger; needs the package tensorboard."""

from __future__ import annotations

from pathlib import Path

import pytest

from slaterl.errors import Interrupted, UserError
from slaterl.training.logger_settings import check_loggers
from tests.helpers import compose_config
from tests.training.small_run import a_run, train

pytest.importorskip("tensorboard")


def curve(folder: Path, name: str) -> dict[int, float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    points = events.Scalars(name)
    assert len({point.step for point in points}) == len(points)
    return {point.step: point.value for point in points}


def test_rows_and_configuration_are_in_the_folder_of_the_run(tmp_path: Path) -> None:
    cfg = compose_config("logger=[csv,tensorboard]", "agent.gamma=0.7")
    check_loggers(cfg)
    run = train(cfg, a_run(tmp_path))
    assert curve(run.path / "tensorboard", "loss/critic") == {1: 0.5, 2: 1.0, 3: 1.5}
    assert "gamma: 0.7" in (run.path / "tensorboard" / "hparams.yaml").read_text()
    assert {path.name for path in run.path.iterdir()} == {"manifest.json", "metrics.csv", ".lock", "tensorboard"}


def test_resumed_run_is_one_curve(tmp_path: Path) -> None:
    """The steps after the checkpoint were logged by both starts; those of the first start are hidden."""
    cfg, run = compose_config("logger=tensorboard", "logger.tensorboard.prefix=mine"), a_run(tmp_path)
    with pytest.raises(Interrupted):
        train(cfg, run, updates=5, error=Interrupted(15))
    train(cfg, run, updates=1, start=3)
    assert curve(run.path / "tensorboard", "mine-start") == {1: 0, 2: 0, 3: 0, 4: 3}


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match=r"logger\.tensorboard\.flush_secs=0: expected a number above zero"):
        check_loggers(compose_config("logger=tensorboard", "logger.tensorboard.flush_secs=0"))
    with pytest.raises(UserError, match=r"logger\.tensorboard\.prefx: no such setting; did you mean prefix\?"):
        check_loggers(compose_config("logger=tensorboard", "+logger.tensorboard.prefx=a"))
