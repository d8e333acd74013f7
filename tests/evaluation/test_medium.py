"""Which checkpoint of an online run is its half-trained one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from slaterl.errors import UserError
from slaterl.evaluation.medium import medium_checkpoint
from slaterl.runs.files import write_json
from slaterl.runs.run import Run

# without and with exploration, by step; random slates return 100, the best 300
VALIDATIONS = {10: (120, 110), 20: (180, 150), 30: (210, 160), 40: (300, 220)}


def a_run(root: Path, files: tuple[str, ...], sampled: bool = True, best: float = 300) -> Run:
    run = Run(root, "online", "toy", "sac", {"seed": 1})
    run.path.mkdir(parents=True)
    rows = ["step,val/return,val/return_sampled" if sampled else "step,val/return", "5,,"]
    rows += [f"{step},{a},{b}" if sampled else f"{step},{a}" for step, (a, b) in VALIDATIONS.items()]
    (run.path / "metrics.csv").write_text("\n".join(rows) + "\n")
    write_json(run.path / "result.json", {"val_return": best, "random_return": 100.0})
    for file in files:
        (run.path / file).touch()
    return run


ALL = tuple(f"kept-step{step}.ckpt" for step in VALIDATIONS)


@pytest.mark.parametrize(
    ("files", "sampled", "chosen"),
    [
        (ALL, False, "kept-step30.ckpt"),  # 55
        (ALL, True, "kept-step40.ckpt"),  # 60 with exploration, where it is 100 without
        (("step20.ckpt", *ALL[3:]), False, "step20.ckpt"),  # 40
        (("step20.ckpt", "step5.ckpt", *ALL[3:]), True, "kept-step40.ckpt"),
    ],
)
def test_nearest_to_half(files: tuple[str, ...], sampled: bool, chosen: str, tmp_path: Path) -> None:
    assert medium_checkpoint(a_run(tmp_path, files), sampled=sampled).name == chosen


def test_runs_of_older_versions_measured_one_return(tmp_path: Path) -> None:
    run = a_run(tmp_path, ("step30.ckpt", "step40.ckpt", "best.ckpt", "last.ckpt"), sampled=False)
    assert medium_checkpoint(run, sampled=True).name == "step30.ckpt"


def test_nothing_half_trained(tmp_path: Path) -> None:
    run = a_run(tmp_path / "far", (ALL[0], ALL[3]))
    said = r"dataset\.run\.medium_step=null: .* of 35 to 65 .* step 10 \(10\), step 40 \(100\); choose one by"
    with pytest.raises(UserError, match=said) as caught:
        medium_checkpoint(run, sampled=False)
    assert re.search("dataset.run.medium_step=<step>", str(caught.value))
    for number, worse in enumerate((50.0, 100.0)):  # no better than random slates
        with pytest.raises(UserError, match="none with a score"):
            medium_checkpoint(a_run(tmp_path / str(number), ALL, best=worse), sampled=False)
