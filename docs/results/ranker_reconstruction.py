"""Pretrain GeMS and GeMS with a transformer for equal processor time on one log, in turn, and compare what they learn.

    python docs/results/ranker_reconstruction.py --seconds 45 --trajectories 1500

Other arguments are settings. `slots right` is with the recorded items before a slot, as in metrics.csv. `rebuilt` is
the share of slots that rank(encode(slate, clicks)) shows again, which has only the latent.
"""

from __future__ import annotations

import argparse
import time

import torch
from hydra import compose, initialize_config_dir

from slaterl.agents.heuristics import EpsilonOracle
from slaterl.config.build import build_env, make
from slaterl.paths import CONF
from slaterl.rankers.pretraining import GeMSPretraining, SlateData
from slaterl.rollout import rollout
from slaterl.runtime import prepare
from slaterl.seeds import seeded_weights, stream

RANKERS = ("gems", "gems_transformer")
UPDATES = 10  # before the other ranker's turn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=45.0)
    parser.add_argument("--trajectories", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    arguments, settings = parser.parse_known_args()
    prepare(1, "highest")
    learners, data, used = {}, {}, dict.fromkeys(RANKERS, 0.0)
    for name in RANKERS:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("config", [f"ranker={name}", *settings])
        env = build_env(cfg.env, torch.device("cpu"))
        sizes = {"num_items": env.num_items, "slate_size": env.slate_size}
        policy = EpsilonOracle(epsilon=cfg.logged_data.epsilon, generator=stream(2023, "log"), **sizes)
        users = stream(2023, "users")
        logged = rollout(policy, env, arguments.trajectories, generator=users, deterministic=False)
        with seeded_weights(arguments.seed, "weights"):
            ranker = make(cfg.ranker, "ranker", **sizes)
        noise = stream(arguments.seed, "noise")
        learners[name] = GeMSPretraining(ranker, lr=cfg.pretrain.lr, generator=noise)
        shown = {"batch_size": cfg.pretrain.batch_size, "epochs": 1000, "seed": arguments.seed}
        data[name] = SlateData(logged, learners[name], holdout=0.1, source="the log", **shown)
    batches = {name: iter(data[name]) for name in RANKERS}
    updates = dict.fromkeys(RANKERS, 0)
    while min(used.values()) < arguments.seconds:
        name = min(used, key=lambda name: used[name])
        start = time.process_time()
        for _ in range(UPDATES):
            learners[name].update(next(batches[name]))
        used[name] += time.process_time() - start
        updates[name] += UPDATES
    for name in RANKERS:
        found = learners[name].validate(data[name].held_out_batches())
        with torch.no_grad():
            hits = [
                (learners[name].gems.rank(learners[name].gems.encode(*batch)) == batch.slates).float().mean()
                for batch in data[name].held_out_batches()
            ]
        terms = ", ".join(f"{key} {found[f'val/loss/{key}']:.3f}" for key in ("total", "slate", "click", "kl"))
        print(
            f"{name:17} {used[name]:.0f} s, {updates[name]:5} updates: {terms}, "
            f"slots right {found['val/accuracy/slot']:.1%}, rebuilt {torch.stack(hits).mean():.1%}"
        )


if __name__ == "__main__":
    main()
