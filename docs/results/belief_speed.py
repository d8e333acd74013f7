"""Time an update and a turn of an agent with each belief, in turn.

    python docs/results/belief_speed.py sac 20 --rounds 11
    python docs/results/belief_speed.py td3_bc 256 --rounds 5 stage=offline

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

from slaterl.config.build import AGENT_NODES, build_agent, build_env, plain
from slaterl.paths import CONF
from slaterl.rollout import rollout
from slaterl.seeds import stream

BELIEFS = ("gru", "lstm", "transformer", "lru", "mean")
UPDATES = 4  # in one measurement; a policy that learns at every second update learns in half of them
USERS = 200


def milliseconds(action: Callable[[], object]) -> float:
    start = time.process_time()
    action()
    return 1000 * (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("agent")
    parser.add_argument("trajectories", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    arguments, settings = parser.parse_known_args()
    torch.set_num_threads(1)
    made = {}
    for belief in BELIEFS:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("config", [f"agent={arguments.agent}", f"belief={belief}", *settings])
        env = build_env(cfg.env, torch.device("cpu"))
        agent = build_agent({name: plain(cfg[name]) for name in AGENT_NODES}, env, seed=0)
        random, users = agent.random_policy(stream(0, "random")), stream(0, "users")
        batch = rollout(random, env, arguments.trajectories, generator=users, deterministic=False)
        made[belief] = agent, env, batch

    def update(belief: str) -> None:
        agent, _, batch = made[belief]
        for _ in range(UPDATES):
            agent.step += 1
            agent.update(batch)

    def serve(belief: str) -> None:
        agent, env, _ = made[belief]
        rollout(agent.policy(), env, USERS, generator=stream(1, "users"), deterministic=True)

    updates, turns = ({belief: [] for belief in BELIEFS} for _ in range(2))
    for number in range(arguments.rounds + 1):
        for belief in BELIEFS:
            times = milliseconds(lambda: update(belief)), milliseconds(lambda: serve(belief))  # noqa: B023
            if number:  # the first round is a warm-up
                updates[belief].append(times[0] / UPDATES)
                turns[belief].append(times[1] / made[belief][1].episode_length)
    for belief in BELIEFS:
        learning, acting = statistics.median(updates[belief]), statistics.median(turns[belief])
        print(f"{belief:12} update {learning:7.1f} ms, turn of {USERS} users {acting:5.2f} ms")


if __name__ == "__main__":
    main()
