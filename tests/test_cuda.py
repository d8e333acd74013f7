"""On a GPU: the same code, with no wait for the host inside a turn or an update."""

from __future__ import annotations

import pytest
import torch

from slaterl.config.build import build_agent, build_env, plain
from slaterl.rollout import rollout
from slaterl.seeds import stream
from tests.helpers import compose_config

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_turns_and_updates_do_not_synchronise() -> None:
    device = torch.device("cuda")
    cfg = compose_config("scale=smoke")
    env = build_env(cfg.env, device)
    agent = build_agent({name: plain(cfg[name]) for name in ("agent", "ranker", "belief")}, env, seed=0)
    users = stream(0, "users", device)
    policy = agent.policy(stream(0, "exploration", device))
    batch = rollout(policy, env, 8, generator=users, deterministic=False)
    agent.update(batch)  # the first use of a kernel may wait for its compilation
    torch.cuda.set_sync_debug_mode("error")
    try:
        batch = rollout(policy, env, 8, generator=users, deterministic=False)
        agent.update(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert batch.returns.isfinite().all()


def test_a_constant_slate_is_decoded_where_the_users_are() -> None:
    device = torch.device("cuda")
    cfg = compose_config("scale=smoke", "stage=evaluate", "agent=constant_slate")
    env = build_env(cfg.env, device)
    policy = build_agent({name: plain(cfg[name]) for name in ("agent", "ranker", "belief")}, env, seed=0)
    rollout(policy, env, 8, generator=stream(0, "users", device), deterministic=True)
