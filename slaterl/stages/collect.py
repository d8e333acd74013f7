"""stage=collect: an offline dataset, from policies in the simulator or from a file, with its card."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from slaterl.agents.heuristics import ConstantSlate
from slaterl.config.build import build_env, env_spec, plain, resolve_device
from slaterl.console import note, progress
from slaterl.data import card, trajectories
from slaterl.data.formats import foreign, minari
from slaterl.data.trajectories import Trajectories
from slaterl.envs.topic_rec import TopicRec
from slaterl.errors import UserError
from slaterl.evaluation.evaluate import anchors, evaluate
from slaterl.rankers.base import Ranker
from slaterl.rankers.gems import GeMS
from slaterl.rollout import collect as serve
from slaterl.runs.files import fingerprint_of, write_text
from slaterl.runs.run import Run, versions, write_json
from slaterl.seeds import stream
from slaterl.stages.behaviours import (
    behaviour_policy,
    behaviours_of,
    checkpoint_of,
    file_of,
    find_or_train,
    online_run,
    replayed,
)

FILE = "trajectories.safetensors"
ANCHOR_USERS = 500


def dataset_run(cfg: DictConfig, env: TopicRec) -> Run:
    """Where the dataset of this configuration lies, made or not."""
    settings = plain(cfg.dataset)
    spec: dict[str, Any] = {"env": env_spec(cfg.env, env), "dataset": settings}
    if cfg.dataset.name == "file":
        source = settings.pop("path")
        spec["file"] = _fingerprint_of(source)
        name = Path(source.removeprefix("minari:")).stem.replace("/", "-")
    else:
        settings.pop("run")
        settings["behaviours"] = behaviours = behaviours_of(cfg.dataset)
        settings.pop("behaviour", None)
        for behaviour in behaviours.values():
            given = behaviour.pop("checkpoint")
            if given is not None:
                if not Path(given).is_file():
                    raise UserError(f"dataset.behaviour.checkpoint={given}: no such file")
                behaviour["checkpoint"] = fingerprint_of(Path(given))
            elif _learned({**behaviour, "checkpoint": None}):
                behaviour["checkpoint"] = file_of(cfg, behaviour["policy"])
        spec["online"] = online_run(cfg, env).digest  # its expert is in the card, and in every normalised score
        name = f"{settings['trajectories']}-seed{settings['seed']}"
    return Run(
        Path(cfg.paths.root), "collect", env.name, f"{cfg.dataset.name}-{name}", spec, products=("result.json", FILE)
    )


def collect(cfg: DictConfig) -> Run:
    """Find or make the dataset, and the agents behind it."""
    env = build_env(cfg.env, resolve_device(cfg.device))
    run = dataset_run(cfg, env)
    collected = cfg.dataset.name != "file"
    learned = collected and any(map(_learned, behaviours_of(cfg.dataset).values()))
    with run.making(cfg, inputs={"online": online_run(cfg, env)} if learned else {}) as needed:
        if needed:
            if learned:
                find_or_train(cfg, env)
            _make(cfg, env, run)
    result = run.result()
    note(f"{result['trajectories']:,} trajectories, return {result['return_mean']:.1f} ± {result['return_std']:.1f}")
    note(f"card: {run.path / 'card.md'}")
    return run


def _learned(behaviour: dict[str, Any]) -> bool:
    """Whether it is a checkpoint of the online run that dataset.run names."""
    return behaviour["checkpoint"] is None and behaviour["policy"] != "random"


def load_dataset(run: Run, env: TopicRec) -> tuple[Trajectories, dict[str, Any]]:
    """The trajectories of a finished dataset, and their metadata."""
    return trajectories.load(run.path / FILE, num_items=env.num_items)


def is_foreign(cfg: DictConfig) -> bool:
    """Whether the dataset is a file of another layout, which need not say what simulator it is of, if any."""
    return cfg.dataset.name == "file" and not cfg.dataset.path.endswith(".safetensors")


def expert_return(cfg: DictConfig, env: TopicRec) -> float | None:
    """Test return of the agent that expert data are made with; None while it is not trained, or not known."""
    if cfg.dataset.name == "file":
        return None
    run = online_run(cfg, env)
    return run.result()["test_return"] if run.finished else None


def _make(cfg: DictConfig, env: TopicRec, run: Run) -> None:
    started = time.perf_counter()
    ranker: Ranker | None = None
    if cfg.dataset.name == "file":
        data, behaviours = _imported(cfg, env)
    else:
        data, behaviours, ranker = _collected(cfg, env)
    seconds = time.perf_counter() - started
    metadata = {"env": plain(cfg.env), "item_embeddings": env.fingerprint, "behaviours": behaviours}
    metadata |= {"dataset": cfg.dataset.name, "versions": versions()}
    trajectories.save(run.path / FILE, data.compact(env.num_items), metadata)
    _, metadata = load_dataset(run, env)

    known = anchors(env, ANCHOR_USERS, seed=_anchor_seed(cfg))
    reached: dict[str, float | None] = {
        "random": known["random_return"],
        "constant_slate": _constant_slate_return(cfg, env, ranker),
        "short_term_oracle": known["oracle_return"],
        "expert": expert_return(cfg, env),
    }
    described = card.describe(data, behaviours, num_items=env.num_items, anchors=reached)
    if is_foreign(cfg):
        described["warnings"].append(f"The anchors are of {env.name}; they mean nothing if the file is from elsewhere.")
    described |= {"title": f"{cfg.dataset.name} on {env.name}", "checksum": metadata["checksum"]}
    write_json(run.path / "card.json", described)
    write_text(run.path / "card.md", card.as_markdown(described))
    card.draw(described, run.path / "card.png")
    for warning in described["warnings"]:
        note(f"warning: {warning}")
    returns = data.returns
    write_json(
        run.path / "result.json",
        {
            "stage": "collect",
            "env": env.name,
            "dataset": cfg.dataset.name,
            "item_embeddings": env.fingerprint,
            "trajectories": len(data),
            "turns": data.rewards.numel(),
            "return_mean": returns.mean().item(),
            "return_std": returns.std().item() if len(data) > 1 else 0.0,
            **{f"{name}_return": value for name, value in reached.items()},
            "checksum": metadata["checksum"],
            "seconds": seconds,
        },
    )


def _collected(cfg: DictConfig, env: TopicRec) -> tuple[Trajectories, list[dict[str, Any]], Ranker | None]:
    """Trajectories of each behaviour in turn, what is to be said of them, and a ranker of one of them."""
    dataset, spec = cfg.dataset, env_spec(cfg.env, env)
    chosen = behaviours_of(dataset)
    counts = _shares(dataset.trajectories, [b["share"] for b in chosen.values()])
    parts: list[Trajectories] = []
    told: list[dict[str, Any]] = []
    ranker: Ranker | None = None
    for index, ((name, behaviour), count) in enumerate(zip(chosen.items(), counts, strict=True)):
        checkpoint = checkpoint_of(cfg, env, behaviour)
        if behaviour["policy"] == "replay":
            assert checkpoint is not None
            part = replayed(checkpoint, spec, count)
            if len(part) < count:
                note(f"the replay buffer holds {len(part):,} trajectories, {count:,} were asked for")
        else:
            policy, own = behaviour_policy(behaviour, checkpoint, env, spec, name, dataset.seed)
            if dataset.actions and not _same_ranker(ranker, own):
                raise UserError(
                    f"dataset.actions=true: {name} acts through another ranker than the behaviours before it"
                )
            ranker = ranker or own
            with progress(f"collect {name}", count, "trajectories") as show:
                part = serve(
                    policy,
                    env,
                    count,
                    generator=stream(dataset.seed, f"users of {name}", env.device),
                    deterministic=not behaviour["sample"],
                    num_envs=min(dataset.num_envs, count),
                    hidden=dataset.hidden,
                    on_progress=show,
                )
        if dataset.actions and part.actions is None:
            raise UserError(f"dataset.actions=true: the behaviour {name} has no ranker, so no actions to record")
        if dataset.hidden and not part.hidden:
            raise UserError(f"dataset.hidden=true: what {name} recorded has no hidden state")
        part.actions = part.actions if dataset.actions else None
        part.hidden = part.hidden if dataset.hidden else {}
        part.policy_id = torch.full((len(part),), index, dtype=torch.int16)
        parts.append(part)
        fingerprint = None if checkpoint is None else fingerprint_of(checkpoint)
        about = {key: behaviour[key] for key in ("policy", "sample", "noise", "epsilon")}
        told.append({"name": name, **about, "checkpoint": fingerprint, "seed": dataset.seed, "trajectories": len(part)})
    columns = [part.columns() for part in parts]
    joined = {name: torch.cat([part[name] for part in columns]) for name in columns[0]}
    return Trajectories.from_columns(joined), told, ranker


def _same_ranker(one: Ranker | None, other: Ranker | None) -> bool:
    """Whether the actions of both mean the same, as far as both are there."""
    if one is None or other is None:
        return True
    a, b = one.state_dict(), other.state_dict()
    return type(one) is type(other) and all(torch.equal(a[key], b[key]) for key in a)


def _shares(total: int, shares: list[float]) -> list[int]:
    """`total` in whole numbers of these proportions, each at least 1."""
    bounds = [round(total * sum(shares[:i]) / sum(shares)) for i in range(len(shares) + 1)]
    counts = [after - before for before, after in itertools.pairwise(bounds)]
    if min(counts) < 1:
        raise UserError(f"dataset.trajectories={total}: too few for the shares {shares} of its behaviours")
    return counts


def _imported(cfg: DictConfig, env: TopicRec) -> tuple[Trajectories, list[dict[str, Any]]]:
    """A file of slaterl, or of another layout, and what is to be said of its behaviours."""
    source = cfg.dataset.path
    if is_foreign(cfg):
        data, about = foreign.read(
            source,
            num_items=env.num_items,
            slate_size=env.slate_size,
            episode_length=env.episode_length,
            first_slate=env.first_slate,
        )
        exported = about.pop("exported", None)
        if exported is None:
            return data, [{"name": "file", **about, "trajectories": len(data)}]
        _check_catalogue(source, exported, env, cfg.force)
        return data, [{**about, **behaviour} for behaviour in exported["behaviours"]]
    data, metadata = trajectories.load(Path(source), num_items=env.num_items)
    _check_catalogue(source, metadata, env, cfg.force)
    frames = (env.episode_length + 1, env.slate_size)
    if tuple(data.slates.shape[1:]) != frames:
        found = f"{data.slates.shape[1] - 1} turns of slates of {data.slates.shape[2]}"
        raise UserError(f"{source}: trajectories of {found}, expected {frames[0] - 1} turns of slates of {frames[1]}")
    return data, metadata["behaviours"]


def _check_catalogue(source: str, metadata: dict[str, Any], env: TopicRec, force: bool) -> None:
    """Raise UserError unless a dataset that slaterl wrote is of the environment's items."""
    if metadata.get("item_embeddings") != env.fingerprint and not force:
        raise UserError(
            f"{source}: of the item embeddings {metadata.get('item_embeddings')}, env={env.name} has "
            f"{env.fingerprint}, where its slates mean something else; force=true takes it anyway"
        )


def _fingerprint_of(source: str) -> str:
    """Of a file, or of the files of a Minari dataset."""
    if source.startswith("minari:"):
        return minari.fingerprint(source.removeprefix("minari:"))
    if not Path(source).is_file():
        raise UserError(f"dataset.path={source}: no such file")
    return fingerprint_of(Path(source))


def _constant_slate_return(cfg: DictConfig, env: TopicRec, ranker: Ranker | None) -> float | None:
    """What GeMS' decode of 0 reaches; None where no behaviour has GeMS."""
    if not isinstance(ranker, GeMS):
        return None
    policy = ConstantSlate(slate=None, num_items=env.num_items, slate_size=env.slate_size, ranker=ranker)
    return evaluate(policy, env, ANCHOR_USERS, _anchor_seed(cfg), "test").mean_return


def _anchor_seed(cfg: DictConfig) -> int:
    """The expert's, so that anchors meet its test users; not that of the agent for which the dataset is made first."""
    return cfg.dataset.run.seed if "run" in cfg.dataset else cfg.logged_data.seed
