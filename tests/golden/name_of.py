# ruff: noqa: F403, SIM105
"""The folder of a configuration's product, without making it."""

from pathlib import Path

from omegaconf import DictConfig

from slaterl.config.build import *
from slaterl.config.build import build_env
from slaterl.runs.run import Run


def name_of(cfg: DictConfig) -> str:
    import torch

    from slaterl.stages import collect, evaluate, log_data, mf, offline, online, pretrain

    env = build_env(cfg.env, torch.device("cpu"))
    stage = cfg.stage.name
    if stage == "online":
        run = online.online_plan(cfg, env).run
    elif stage == "offline":
        seen = []
        orig = offline.plan

        class Stop(Exception):
            pass

        def grab(*a, **k):
            seen.append(orig(*a, **k))
            raise Stop

        offline.plan = grab
        try:
            offline.offline(cfg)
        except Stop:
            pass
        offline.plan = orig
        run = seen[0].run
    elif stage == "log_data":
        run = log_data.logged_data_run(cfg, env)
    elif stage == "pretrain":
        run = pretrain.ranker_run(cfg, env)
    elif stage == "mf":
        run = mf.mf_run(cfg, env)
    elif stage == "collect":
        run = collect.dataset_run(cfg, env)
    elif stage == "evaluate":

        class Stop(Exception):
            pass

        seen = []

        def making(self, *a, **k):
            seen.append(self)
            raise Stop

        orig = Run.making
        Run.making = making
        try:
            evaluate.evaluate(cfg)
        except Stop:
            pass
        Run.making = orig
        run = seen[0]
    return str(run.path.relative_to(Path(cfg.paths.root)))
