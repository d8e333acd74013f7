"""Measure the CPU time of an update and of a validation for offline agents, at the sizes of scale=reduced.

    python docs/results/offline_speed.py bc td3_bc cql
    python docs/results/offline_speed.py decision_diffuser offline.batch_size=256

The agents are untrained, and the data are 400 trajectories of the epsilon-oracle.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch

from slaterl.agents.heuristics import EpsilonOracle
from slaterl.evaluation.evaluate import evaluate_both
from slaterl.rollout import collect
from slaterl.seeds import stream
from slaterl.stages.agent import begin_agent
from tests.helpers import compose_config

WARM_UP, UPDATES, VALIDATIONS = 4, 10, 14.5  # 12 validations; the test serves 500 users instead of 200


def main() -> None:
    torch.set_num_threads(1)
    overrides = [argument for argument in sys.argv[1:] if "=" in argument]
    for name in (argument for argument in sys.argv[1:] if "=" not in argument):
        cfg = compose_config("scale=reduced", "stage=offline", f"agent={name}", "device=cpu", *overrides)
        env, agent = begin_agent(cfg, {})
        generator = stream(1, "benchmark", env.device)
        sizes = {"num_items": env.num_items, "slate_size": env.slate_size, "generator": generator}
        logging = EpsilonOracle(epsilon=0.5, **sizes)
        logged = collect(logging, env, 400, generator=generator, deterministic=False, num_envs=400)
        batch = agent.prepare(logged)[: cfg.offline.batch_size]
        times = []
        for _ in range(WARM_UP + UPDATES):
            start = time.process_time()
            agent.step += agent.steps_in(batch)
            agent.update(batch)
            times.append(time.process_time() - start)
        start = time.process_time()
        evaluate_both(agent.policy(), env, cfg.offline.val_users, 1, "validation", "")
        update, validation = statistics.mean(times[WARM_UP:]), time.process_time() - start
        minutes = (cfg.offline.max_steps * update + VALIDATIONS * validation) / 60
        print(
            f"{name}: update {update * 1000:.0f} ms, validation {validation:.2f} s, run {minutes:.1f} min", flush=True
        )


if __name__ == "__main__":
    main()
