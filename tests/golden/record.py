"""What a change of the code's shape must not change: names of runs, results at the smallest scale, parameters.

    python -m tests.golden.record names             the folder of every product, of every stage and preset
    python -m tests.golden.record parameters        names and shapes in every agent's state dict
    python -m tests.golden.record results FOLDER    what a run of every stage, agent and ranker writes

Each prints JSON. test_golden.py compares them with the JSON files of this folder. Names and parameters are the same on
every machine. Results are the same to the bit on one machine, before and after a change.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from slaterl.data import trajectories
from slaterl.paths import CONF
from slaterl.run import run_stage
from slaterl.runs.products import product_of
from tests.helpers import SIMULATORS, compose_config

ONLINE = [
    "sac", "td3", "reinforce", "dqn", "slateq", "reinforce_slate", "wolpertinger", "fql_online", "hac", "gfn4rec",
    "best_constant_slate",
]  # fmt: skip
OFFLINE = [
    "bc", "slate_bc", "pct_bc", "td3_bc", "rebrac", "iql", "awac", "cql", "cal_ql", "bcq", "plas", "fql",
    "diffusion_ql", "sac_n", "edac", "decision_transformer", "gfn4rec_offline",
    "decision_diffuser", "diffusion_veteran",
]  # fmt: skip
SMALLER = {"diffusion_veteran": ["agent.candidates=4", "agent.sample_steps=4"]}  # it acts slowly
HEURISTICS = ["random", "short_term_oracle", "epsilon_oracle", "constant_slate"]
DATASETS = ["random", "medium", "expert", "medium_expert", "mixed", "replay"]


def files_of(group: str) -> list[str]:
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


def named() -> list[list[str]]:
    """Overrides of one command for each product that is named."""
    main = [[f"env={env}"] for env in SIMULATORS]
    main += [[f"scale={scale}"] for scale in files_of("scale")] + [
        [f"params={params}"] for params in files_of("params")
    ]
    main += [[f"agent={agent}"] for agent in ONLINE if agent != "sac"]
    main += [[f"method={method}"] for method in files_of("method")]
    main += [["belief=none"], ["click_model=mixPBM"], ["ranker.unique=true"], ["seed=1", "ranker_seed=2"]]
    for ranker in ("top_k", "k_head_argmax"):
        main += [[f"ranker={ranker}", f"item_embeddings={items}"] for items in ("mf", "ideal", "scratch")]
    main += [["ranker=gems_transformer"], ["ranker.temperature=0.5"], ["stage=pretrain", "ranker=gems_transformer"]]
    main += [["logged_data.source=dataset", "dataset=random"], ["agent.gamma=0.9", "agent.q_hidden=[64,64]"]]
    main += [["experiment=head_to_head"], ["experiment=gamma0"], ["experiment=lambda_grid"]]
    main += [["stage=log_data"], ["stage=pretrain"], ["stage=mf", "item_embeddings=mf"]]
    main += [["stage=collect", f"dataset={dataset}"] for dataset in DATASETS]  # fmt: skip
    main += [["stage=collect", "dataset=medium", "dataset.run.agent=td3", "dataset.run.ranker=top_k"]]
    main += [["stage=offline", f"agent={agent}"] for agent in OFFLINE]
    main += [["stage=offline", "agent=iql", f"dataset={dataset}"] for dataset in DATASETS]
    main += [["stage=offline", "agent=iql", "offline.validation=fqe", "scale=demo"]]
    main += [["stage=evaluate", f"agent={agent}"] for agent in HEURISTICS]
    return main


def names() -> dict[str, str]:
    found = {}
    for overrides in named():
        cfg = compose_config(*overrides)
        found[" ".join(overrides)] = str(product_of(cfg, cfg.stage.name).run.path.relative_to(cfg.paths.root))
    return found


def parameters() -> dict[str, dict[str, list[int]]]:
    """Shapes by name, of every agent at the smallest scale, ranker included."""
    from slaterl.config.build import AGENT_NODES, build_agent, build_env, plain

    found = {}
    for given in [[f"agent={agent}"] for agent in ONLINE + OFFLINE] + [["agent=sac", "ranker=gems_transformer"]]:
        cfg = compose_config("scale=smoke", *given, "env.num_items=40", "env.slate_size=4")
        env = build_env(cfg.env, torch.device("cpu"))
        built = build_agent({name: plain(cfg[name]) for name in AGENT_NODES}, env, seed=0)
        found[" ".join(given).removeprefix("agent=")] = {
            name: list(value.shape) for name, value in built.state_dict().items()
        }
    return found


def results(home: Path) -> dict[str, Any]:
    """Run every stage, agent and ranker at scale=smoke."""
    os.environ["SLATERL_HOME"] = str(home)
    commands = [[f"agent={agent}"] for agent in ONLINE]
    commands += [["agent=sac", "ranker=top_k"], ["agent=td3", "ranker=k_head_argmax", "item_embeddings=ideal"]]
    commands += [["ranker=gems_transformer"], ["stage=offline", "agent=td3_bc", "ranker.temperature=1"]]
    commands += [["belief=none"], ["ranker.unique=true", "env=diffuse_divpen"], ["params=params1", "seed=1"]]
    commands += [["stage=evaluate", f"agent={agent}"] for agent in HEURISTICS]
    commands += [["stage=collect", f"dataset={dataset}"] for dataset in DATASETS]
    commands += [["stage=offline", f"agent={agent}", *SMALLER.get(agent, [])] for agent in OFFLINE]
    commands += [["stage=offline", "agent=td3_bc", "ranker=top_k", "dataset=mixed"]]
    fqe = ["fqe.updates=20", "fqe.batch_size=8", "fqe.members=5"]
    commands += [["stage=offline", "agent=iql", "offline.validation=fqe", *fqe]]
    commands += [["logged_data.source=dataset", "dataset=random"]]
    with contextlib.redirect_stdout(sys.stderr):
        for overrides in commands:
            print(" ".join(overrides))
            run_stage(compose_config("scale=smoke", "device=cpu", "threads=1", *overrides))
        checkpoint = min(home.glob("online/focused_topdown/sac-gems*/best.ckpt"))
        for more in ([], ["evaluation=fqe", *fqe]):
            run_stage(compose_config("scale=smoke", "device=cpu", "stage=evaluate", f"checkpoint={checkpoint}", *more))
    return written(home)


def written(home: Path) -> dict[str, Any]:
    """The content of all runs below a folder, without times and paths."""
    return {_name(file.parent.relative_to(home)): _told(file) for file in sorted(home.glob("*/*/*/result.json"))}


def _name(path: Path) -> str:
    """The run's folder; the digest of a checkpoint's evaluation changes with the checkpoint."""
    name = str(path)
    return name.rpartition("-")[0] if "-step" in name or "/fqe-" in name else name


def _told(file: Path) -> dict[str, Any]:
    result = json.loads(file.read_text())
    # a checkpoint holds how long its training took, so its content is another every time
    changing = ("seconds", "checkpoint", "checksum", "sha256")
    told: dict[str, Any] = {key: value for key, value in result.items() if not any(word in key for word in changing)}
    if (metrics := file.with_name("metrics.csv")).is_file():
        rows = list(csv.reader(metrics.read_text().splitlines()))
        keep = [i for i, name in enumerate(rows[0]) if not name.startswith(("time/", "speed/"))]
        told["metrics.csv"] = [",".join(row[i] for i in keep) for row in rows]
    if (data := file.with_name(trajectories.FILE)).is_file():
        columns = trajectories.load(data)[0].columns()
        told["columns"] = {name: hashlib.sha256(c.numpy().tobytes()).hexdigest()[:16] for name, c in columns.items()}
    if (card := file.with_name("card.json")).is_file():  # its warnings are words
        numbers = {k: v for k, v in json.loads(card.read_text()).items() if k not in ("warnings", "checksum")}
        for behaviour in numbers["behaviours"]:
            behaviour.pop("checkpoint", None)
        told[card.name] = hashlib.sha256(json.dumps(numbers).encode()).hexdigest()[:16]
    return told


if __name__ == "__main__":
    torch.set_num_threads(1)
    kind, *arguments = sys.argv[1:]
    made = {"names": names, "parameters": parameters, "results": results}[kind](*map(Path, arguments))
    print(json.dumps(made, indent=1, sort_keys=True))
