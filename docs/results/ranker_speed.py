"""Time pretraining and ranking of GeMS and of GeMS with a transformer, in turn.

    python docs/results/ranker_speed.py --rounds 55

Other arguments are settings. Medians are of the processor time of this process, on one core, so that other work on the
machine counts less.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from hydra import compose, initialize_config_dir

from slaterl.config.build import make
from slaterl.paths import CONF
from slaterl.rankers.pretraining import GeMSPretraining, Slates
from slaterl.runtime import prepare
from slaterl.seeds import seeded_weights, stream

RANKERS = ("gems", "gems_transformer")
USERS = (20, 200)


def milliseconds(action: Callable[[], object]) -> float:
    start = time.process_time()
    action()
    return 1000 * (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=55)
    arguments, settings = parser.parse_known_args()
    prepare(1, "highest")
    draws = stream(0, "draws")
    actions: dict[str, dict[str, Callable[[], object]]] = {}
    for name in RANKERS:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("config", [f"ranker={name}", "ranker.temperature=1", *settings])
        with seeded_weights(0, "weights"):
            ranker = make(cfg.ranker, "ranker", num_items=cfg.env.num_items, slate_size=cfg.env.slate_size)
        learner = GeMSPretraining(ranker, lr=cfg.pretrain.lr, generator=stream(0, "noise"))
        shape = (cfg.pretrain.batch_size, cfg.env.slate_size)
        shown = torch.randint(cfg.env.num_items, shape, generator=draws)
        batch = Slates(shown, torch.rand(shape, generator=draws) < 0.3)
        its: dict[str, Callable[[], object]] = {
            f"pretraining, a batch of {len(shown)}": lambda learner=learner, batch=batch: learner.update(batch)
        }
        for users in USERS:
            latent = torch.randn(users, ranker.action_dim, generator=draws)
            its[f"argmax, {users} users"] = lambda rank=ranker.rank, latent=latent: rank(latent)
            its[f"draws, {users} users"] = lambda draw=ranker.draw, latent=latent: draw(latent, draws)
        actions[name] = its

    for what in actions[RANKERS[0]]:
        times: dict[str, list[float]] = {name: [] for name in RANKERS}
        for _ in range(arguments.rounds):
            for name in RANKERS:
                with torch.set_grad_enabled(what.startswith("pretraining")):
                    times[name].append(milliseconds(actions[name][what]))
        gems, other = (statistics.median(times[name][5:]) for name in RANKERS)  # the first rounds are a warm-up
        print(f"{what:32} gems {gems:6.2f} ms, gems_transformer {other:6.2f} ms, {other / gems:5.1f} times")


if __name__ == "__main__":
    main()
