"""Compare the speed of two checkouts: stage=benchmark of each in turn, and the ratios of the medians.

    python docs/results/compare_speed.py path/to/old path/to/new --rounds 5 agent=td3_bc threads=1

All other arguments are settings of both. Both run with this Python, so its packages must fit both. Nothing else should
run on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

# name in result.json, label, and whether more is faster
MEASURES = (
    ("online_update_s", "update, online", False),
    ("offline_step_s", "update, offline", False),
    ("online_trajectory_s", "rollout of num_envs users", False),
    ("validation_s", "validation", False),
    ("pretrain_slates_per_s", "GeMS, a batch", True),
    ("simulator_turns_per_s", "simulator, random slates", True),
    ("log_data_trajectories_per_s", "logged data", True),
    ("peak_memory_megabytes", "memory at most", False),
)


def benchmark(checkout: Path, settings: list[str]) -> dict[str, float]:
    """Run stage=benchmark of a checkout and return its result."""
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, "-m", "slaterl.run", "stage=benchmark", f"paths.root={home}", *settings]
        where = {**os.environ, "PYTHONPATH": str(checkout)}
        done = subprocess.run(command, cwd=checkout, env=where, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{checkout}: stage=benchmark failed\n{done.stderr}")
        (result,) = Path(home).glob("benchmark/*/*/result.json")
        return json.loads(result.read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description="compare the speed of two checkouts")
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    given, settings = parser.parse_known_args()
    if given.rounds < 1:
        parser.error("--rounds: at least 1")
    checkouts, found = (given.old.resolve(), given.new.resolve()), ([], [])
    for round_ in range(given.rounds):
        for which in (0, 1) if round_ % 2 == 0 else (1, 0):
            found[which].append(benchmark(checkouts[which], settings))
    for name, label, more_is_faster in MEASURES:
        if name in found[0][0]:
            old, new = (statistics.median(result[name] for result in results) for results in found)
            ratio = old / new if more_is_faster else new / old
            print(f"{label:28} old {old:12.5g}   new {new:12.5g}   new / old {ratio:.2f}")


if __name__ == "__main__":
    main()
