"""A configuration with a mistake is refused before anything starts, by an error that names the setting."""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from slaterl.bounds import hints_of
from slaterl.config.build import build_agent, build_env, env_spec, plain, resolve_device, simulator
from slaterl.config.check import check_config
from slaterl.config.sections import Configuration, Section
from slaterl.envs.catalog import generate
from slaterl.envs.topic_rec import TopicRec
from slaterl.errors import UserError
from slaterl.paths import CONF
from slaterl.run import run_stage
from slaterl.runs.products import product_of
from tests.helpers import SIMULATORS, compose_config
from tests.user_models.made import save_tiny_user_model

CPU = torch.device("cpu")
# experiments and methods set what others define, and hydra checks it; training.logger_settings checks loggers
ELSEWHERE = {"experiment", "method", "hydra", "logger"}
GROUPS = sorted({folder.name for folder in CONF.iterdir() if folder.is_dir()} - ELSEWHERE)
PRESETS = [(group, file.stem) for group in GROUPS for file in sorted((CONF / group).glob("*.yaml"))]


@lru_cache
def composed(*overrides: str) -> DictConfig:
    return compose_config("scale=smoke", *overrides)


def config(*overrides: str, **values: Any) -> DictConfig:
    """A composed configuration that can be changed, with dotted keys set (`__` for the dot)."""
    cfg = copy.deepcopy(composed(*overrides))
    OmegaConf.set_struct(cfg, False)
    for key, value in values.items():
        OmegaConf.update(cfg, key.replace("__", "."), value)
    return cfg


def check(cfg: DictConfig) -> None:
    check_config(cfg)


def refused(cfg: DictConfig) -> str:
    """What check_config says."""
    with pytest.raises(UserError) as error:
        check(cfg)
    return str(error.value)


def keys_of(group: str, name: str) -> tuple[list[str], bool]:
    """Full paths of the leaves that a preset sets, and whether it builds on another preset."""
    file = CONF / group / f"{name}.yaml"
    raw = OmegaConf.to_container(OmegaConf.load(file))
    assert isinstance(raw, dict)
    variant = "defaults" in raw
    raw.pop("defaults", None)
    prefix = "" if "@package _global_" in file.read_text() else f"{group}."

    def leaves(node: dict[Any, Any], path: str) -> list[str]:
        found: list[str] = []
        for key, value in node.items():
            found += leaves(value, f"{path}{key}.") if isinstance(value, dict) else [f"{path}{key}"]
        return found

    return [path for path in leaves(raw, prefix) if not path.endswith("_target_")], variant


@lru_cache
def user_model_file() -> Path:
    return save_tiny_user_model(Path(tempfile.mkdtemp()) / "user_model.ckpt")


def preset(group: str, name: str) -> DictConfig:
    """The configuration with the preset; the stage lets any agent pass that is not trained."""
    more = [] if group == "stage" else ["stage=evaluate"]
    if (group, name) == ("dataset", "file"):
        more.append("dataset.path=log.npz")
    if (group, name) in (("dataset", "log"), ("env", "log")):
        return config("stage=collect", "dataset=log", "dataset.path=log.csv")
    if group == "env" and name.startswith("learned"):
        more.append(f"env.user_model={user_model_file()}")
    if (group, name) == ("stage", "offline"):
        more.append("agent=bc")
    return config(f"{group}={name}", *more)


def test_what_is_shipped_passes() -> None:
    assert len(PRESETS) > 20
    for group, name in PRESETS:
        if name == "none":  # only for agents that need no ranker
            check(config(f"{group}={name}", "agent=random", "stage=evaluate"))
        else:
            check(preset(group, name))
    for group in ("experiment", "method"):
        for file in sorted((CONF / group).glob("*.yaml")):
            check(compose_config(f"{group}={file.stem}"))


def misspelt(key: str) -> str:
    return key + key[-1]


def typos() -> list[Any]:
    own = [(group, name, key) for group, name in PRESETS for key in keys_of(group, name)[0]]
    # files that others build on, by one of these
    shared = [("agent", "td3_bc", "base/offline_actor_critic"), ("dataset", "medium", "base/collected")]
    return own + [(group, name, key) for group, name, base in shared for key in keys_of(group, base)[0]]


@pytest.mark.parametrize(("group", "name", "key"), typos())
def test_typo_in_a_preset(group: str, name: str, key: str) -> None:
    """A preset that builds on another merges its typo in beside the right key; one that stands alone lacks the key."""
    cfg = preset(group, name)
    parent, _, leaf = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    if not keys_of(group, name)[1]:
        del node[leaf]
    node[misspelt(leaf)] = 1
    assert refused(cfg).startswith(misspelt(key) + ": no such setting")


@pytest.mark.parametrize(
    ("group", "name"),
    [(group, name) for group, name in PRESETS if group != "scale"],
)
def test_setting_that_nothing_reads(group: str, name: str) -> None:
    cfg = preset(group, name)
    cfg[group]["surplus"] = 1
    assert refused(cfg).startswith(f"{group}.surplus: no such setting")


@pytest.mark.parametrize("key", ["sed", "belief_dim", "logged_data2"])
def test_unknown_top_level_key(key: str) -> None:
    assert refused(config(**{key: 1})).startswith(f"{key}: no such setting")


@pytest.mark.parametrize("section", ["logged_data", "pretrain", "params", "benchmark", "paths"])
def test_unknown_key_in_a_section(section: str) -> None:
    first = str(next(iter(composed()[section])))
    text = refused(config(**{f"{section}__{misspelt(first)}": 1}))
    assert text.startswith(f"{section}.{misspelt(first)}: no such setting; did you mean {first}?")


@pytest.mark.parametrize(
    "key",
    [
        "agent.num_items",
        "agent.generator",
        "belief.num_items",
        "env.device",
        "ranker.slate_size",
    ],
)
def test_argument_that_the_program_gives(key: str) -> None:
    """It would be overridden without a word."""
    assert refused(config(**{key.replace(".", "__"): 7})).startswith(f"{key}: ")


@pytest.mark.parametrize(
    "key",
    [
        "max_steps",
        "pretrain.epochs",
        "agent.gamma",
        "belief.item_dim",
        "ranker.latent_dim",
        "env.omega",
        "pretrain.lr",
    ],
)
def test_missing_argument(key: str) -> None:
    cfg = config()
    parent, _, leaf = key.rpartition(".")
    del (OmegaConf.select(cfg, parent) if parent else cfg)[leaf]
    assert key in refused(cfg)


@pytest.mark.parametrize(
    "key",
    [
        "seed",
        "max_steps",
        "agent.gamma",
        "env.omega",
        "logged_data.seed",
    ],
)
def test_value_left_open(key: str) -> None:
    assert refused(config(**{key.replace(".", "__"): "???"})).startswith(f"{key}: a value is needed")


def whole_numbers(section: type, path: str = "") -> list[str]:
    """Full paths of the whole numbers among the settings of a section and the sections inside it."""
    found: list[str] = []
    for name, hint in hints_of(section).items():
        if isinstance(hint, type) and issubclass(hint, Section):
            found += whole_numbers(hint, f"{path}{name}.")
        elif any(get_args(part)[:1] == (int,) for part in (hint, *get_args(hint))):  # also in a union
            found.append(path + name)
    return found


COUNTS = whole_numbers(Configuration)


def test_all_sizes_are_whole_numbers() -> None:
    """What is checked below: every integer of config.yaml and the scales."""
    leaves = OmegaConf.to_container(composed(), resolve=True)
    assert isinstance(leaves, dict)
    sections = {key: value for key, value in leaves.items() if isinstance(value, dict) and "_target_" not in value}
    integers = {key for key, value in leaves.items() if type(value) is int}
    for section in sections.keys() - {"dataset"}:
        integers |= {f"{section}.{key}" for key, value in sections[section].items() if type(value) is int}
    others = {"threads", "pretrain.patience", "constant_slate_users"}  # these can also be auto or null
    assert set(COUNTS) - others == integers - others and len(COUNTS) >= 33


@pytest.mark.parametrize("value", [-1, 1.5, True, "ten"])
@pytest.mark.parametrize("key", COUNTS)
def test_counts(key: str, value: Any) -> None:
    shown = "true" if value is True else value
    assert refused(config(**{key.replace(".", "__"): value})).startswith(f"{key}={shown}: expected a whole number")


@pytest.mark.parametrize("key", COUNTS)
def test_counts_that_are_zero(key: str) -> None:
    cfg = config(**{key.replace(".", "__"): 0})
    if key in ("random_steps", "seed", "ranker_seed", "logged_data.seed", "user_training.seed"):
        if key == "random_steps":  # the first batch needs more than one round then
            cfg.num_envs = cfg.batch_size
        check(cfg)
    else:
        assert refused(cfg).startswith(f"{key}=0: ")


FLOATS = ["max_steps=1e5", "seed=1e3", "env.num_items=5e2", "ranker.encoder_hidden=[6.4e1]", "belief.item_dim=8.0"]
INTEGERS = ["max_steps=100000", "seed=1000", "env.num_items=500", "ranker.encoder_hidden=[64]", "belief.item_dim=8"]


@pytest.mark.parametrize("more", [["agent=sac"], ["agent=td3_bc", "stage=offline", "dataset=random"]])
def test_whole_numbers_written_as_floats(more: list[str]) -> None:
    """After the check the configuration is that of the integers, to the type, and so is the name of the run."""
    floats, integers = (compose_config("paths.root=/nowhere", *more, *values) for values in (FLOATS, INTEGERS))
    assert OmegaConf.to_yaml(floats, resolve=True) != OmegaConf.to_yaml(integers, resolve=True)
    check(floats)
    check(integers)
    assert OmegaConf.to_yaml(floats, resolve=True) == OmegaConf.to_yaml(integers, resolve=True)
    assert OmegaConf.to_yaml(floats) == OmegaConf.to_yaml(integers), "what refers to another setting still does"
    assert product_of(floats, floats.stage.name).run.path == product_of(integers, integers.stage.name).run.path


def test_manifest_of_whole_numbers_written_as_floats(tmp_path: Path) -> None:
    manifests = []
    for seed, steps, trajectories in (("7.0", "1e5", "1e1"), ("7", "100000", "10")):
        sizes = [f"logged_data.trajectories={trajectories}", f"max_steps={steps}", "env.episode_length=2"]
        cfg = compose_config("stage=log_data", f"logged_data.seed={seed}", f"paths.root={tmp_path}", *sizes)
        run_stage(cfg)
        (file,) = tmp_path.glob("log_data/*/*/manifest.json")
        manifests.append(json.loads(file.read_text()))
        shutil.rmtree(file.parent)
    times = {"started", "ended", "seconds", "command"}
    first, second = ({key: value for key, value in found.items() if key not in times} for found in manifests)
    assert repr(first) == repr(second)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"threads": 0}, "threads=0: expected a whole number of at least 1 or auto"),
        ({"threads": "all"}, "threads=all: expected a whole number of at least 1 or auto"),
        ({"threads": True}, "threads=true"),
        ({"matmul_precision": "high"}, "matmul_precision=high: expected highest or medium"),
        ({"matmul_precision": None}, "matmul_precision=null: expected highest or medium"),
        ({"random_steps": 60}, "random_steps=60"),  # max_steps
        ({"batch_size": 31, "capacity": 100}, "random_steps=20"),  # of 20 + num_envs 10 trajectories
        ({"capacity": 4}, "capacity=4"),
        ({"pretrain__holdout": 0}, "pretrain.holdout=0"),
        ({"pretrain__holdout": 1.0}, "pretrain.holdout=1.0"),
        ({"pretrain__holdout": "some"}, "pretrain.holdout=some"),
        ({"pretrain__lr": 0}, "pretrain.lr=0"),
        ({"pretrain__lr": "fast"}, "pretrain.lr=fast"),
        ({"pretrain__patience": 0}, "pretrain.patience=0: expected a whole number of at least 1 or null"),
        ({"pretrain__patience": 1.5}, "pretrain.patience=1.5: expected"),
        ({"pretrain__patience": "short"}, "pretrain.patience=short: expected"),
        ({"pretrain__patience": 2, "pretrain__min_delta": -0.1}, "pretrain.min_delta=-0.1: expected a number of at"),
        ({"pretrain__patience": 2, "pretrain__min_delta": float("inf")}, "pretrain.min_delta=inf: expected a number"),
        ({"pretrain__patience": 2, "pretrain__min_delta": None}, "pretrain.min_delta=null: expected a number"),
        ({"pretrain__min_delta": 0.1}, "pretrain.min_delta=0.1: nothing stops early; set pretrain.patience, too"),
    ],
)
def test_values_that_do_not_go_together(values: dict[str, Any], field: str) -> None:
    assert refused(config(**values)).startswith(field)


@pytest.mark.parametrize(
    "values",
    [
        {"threads": 1},
        {"threads": "auto"},
        {"matmul_precision": "medium"},
        {"batch_size": 30},
        {"capacity": 5},
        {"random_steps": 59},
        {"pretrain__patience": 1.0},
    ],
)
def test_limits_that_are_allowed(values: dict[str, Any]) -> None:
    check(config(**values))


@pytest.mark.parametrize(
    ("overrides", "given", "stage"),
    [
        ((), "dataset", "offline"),
        (("stage=evaluate", "checkpoint=x"), "dataset.run.seed", "offline"),
        (("dataset=file",), "dataset.path", "collect"),
        ((), "report.runs", "report"),
        (("stage=collect",), "status.sweep", "status"),
        (("stage=offline", "agent=bc"), "export.minari", "export"),
        ((), "evaluation", "evaluate"),
    ],
)
def test_settings_of_another_stage(overrides: tuple[str, ...], given: str, stage: str) -> None:
    """The stage was forgotten; what would start instead can take hours."""
    with pytest.raises(UserError, match=rf"{given}: stage=\w+ does not read it; .*stage={stage}"):
        check_config(config(*overrides), {"seed", given})


@pytest.mark.parametrize(
    ("more", "given"),
    [
        (("stage=collect",), "seed"),
        (("stage=pretrain", "logged_data.source=dataset"), "seed"),
        ((), "logged_data.source"),  # one job of a sweep over it
    ],
)
def test_settings_that_the_stage_reads(more: tuple[str, ...], given: str) -> None:
    check_config(config(*more), {"dataset", "dataset.run.seed", given})


def test_click_model_beside_an_environments_own() -> None:
    """An environment's file that sets part of it no longer reads the group."""
    check_config(config("click_model=mixPBM"), {"click_model"})
    own = {"_target_": "slaterl.envs.click_models.PositionBasedModel", "decay": 0.7, "bottom_weight": 0.5}
    check_config(config(env__click_model=own), {"seed"})
    with pytest.raises(UserError, match=r"click_model: env=focused_topdown has its own, .* env\.click_model"):
        check_config(config(env__click_model=own), {"click_model.decay"})


@pytest.mark.parametrize("agent", ["cql", "edac"])
def test_episodes_of_one_turn(agent: str) -> None:
    text = refused(config(f"agent={agent}", "stage=offline", env__episode_length=1))
    assert text.startswith(f"env.episode_length=1: agent={agent} learns from the next turn; expected at least 2")


def test_what_an_agent_fixes_is_no_setting() -> None:
    text = refused(config("agent=awac", "stage=offline", agent__policy_delay=2))
    assert text.startswith("agent.policy_delay: no such setting")


def test_agent_that_needs_a_ranker() -> None:
    text = refused(config("agent=sac", "ranker=none"))
    assert all(part in text for part in ("agent=sac", "ranker=none", "ranker=gems, top_k or k_head_argmax"))
    check(config("agent=random", "ranker=none", "stage=evaluate"))


@pytest.mark.parametrize("agent", ["random", "short_term_oracle", "epsilon_oracle"])
def test_agent_that_does_not_learn(agent: str) -> None:
    text = refused(config(f"agent={agent}", "stage=online"))
    assert f"agent={agent}" in text and "stage=evaluate" in text


def test_cuda_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for name in ("cuda", "cuda:1"):
        with pytest.raises(UserError, match=f"device={name}: .*device=cpu"):
            resolve_device(name)
    assert resolve_device("auto") == resolve_device("cpu") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto").type == "cuda" and resolve_device("cuda:1") == torch.device("cuda:1")


@pytest.mark.parametrize(
    "name",
    [
        "gpu",
        "cudas",
        "meta",
        "cuda:",
        "cuda:x",
        0,
        None,
    ],
)
def test_device_that_is_none(name: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UserError, match=f"device={name}: "):
        resolve_device(name)


def agent_of(cfg: DictConfig) -> Any:
    env = build_env(cfg.env, CPU)
    return build_agent({name: plain(cfg[name]) for name in ("agent", "ranker", "belief")}, env, seed=0)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("belief.hidden_dim", 0),
        ("belief.item_dim", -3),
        ("ranker.latent_dim", 0),
        ("ranker.latent_dim", 2.5),
        ("ranker.item_dim", -1),
        ("ranker.posterior_noise", "sigma"),
        ("ranker.decoder_hidden", []),
        ("ranker.encoder_hidden", [0]),
        ("agent.gamma", 1.5),
        ("agent.gamma", "high"),
        ("agent.tau", -0.1),
        ("agent.q_lr", 0),
        ("agent.num_critics", 0),
        ("agent.num_critics", 1.5),
        ("agent.q_hidden", [-1]),
        ("agent.pi_hidden", "wide"),
    ],
)
def test_networks_that_cannot_be(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=key.replace(".", r"\.") + "="):
        agent_of(config(**{key.replace(".", "__"): value}))


def test_agents_weights_follow_from_the_seed() -> None:
    cfg = config()
    env = build_env(cfg.env, CPU)
    nodes = {name: plain(cfg[name]) for name in ("agent", "ranker", "belief")}

    def weights(seed: int) -> torch.Tensor:
        return torch.cat([p.flatten() for p in build_agent(nodes, env, seed).parameters()])

    torch.manual_seed(1)
    first = weights(0)
    torch.manual_seed(2)
    assert torch.equal(first, weights(0)) and not torch.equal(first, weights(1))


def test_every_environment_can_be_built() -> None:
    for name in SIMULATORS:
        env = build_env(config(f"env={name}").env, CPU)
        assert isinstance(env, TopicRec) and env.name == name


def test_click_model_of_the_command_line_beats_the_environments() -> None:
    env = build_env(config("env=focused_topdown").env, CPU)
    other = build_env(config("env=focused_topdown", "click_model=mixPBM").env, CPU)
    assert env.examination[-1] < other.examination[-1]


def test_no_machine_paths_in_conf() -> None:
    assert not [file for file in Path(CONF).rglob("*.yaml") if "/home/" in file.read_text()]


@pytest.mark.parametrize(
    ("node", "path"),
    [
        ({}, "click_model.decay"),
        ({"_target_": "slaterl.envs.click_models.PositionBasedModel", "bottom_weight": 0.5}, "env.click_model.decay"),
    ],
)
def test_click_model_is_named_as_it_is_set(node: dict[str, Any], path: str) -> None:
    """Also where a simulator is built without the check, as Gymnasium does."""
    cfg = config()
    if node:
        cfg.env.click_model = {**node, "decay": 2}
    else:
        cfg.click_model.decay = 2
    assert refused(cfg) == f"{path}=2: expected a number from 0 to 1"
    with pytest.raises(UserError, match=f"^{path}=2: expected a number from 0 to 1$"):
        build_env(cfg.env, CPU)


@pytest.mark.parametrize(
    ("overrides", "values", "said"),
    [
        (("stage=collect",), {"dataset__run": 5}, "dataset.run=5: expected the settings agent, medium_step, ranker"),
        (("stage=collect",), {"dataset__behaviour": 5}, "dataset.behaviour=5: expected the settings checkpoint"),
        (("stage=collect", "dataset=mixed"), {"dataset__behaviours__expert": 5}, "dataset.behaviours.expert=5: "),
        (("stage=collect",), {"dataset__behaviour__noise": 2}, "dataset.behaviour.noise=2: expected a number from 0"),
        (
            ("stage=collect", "dataset=mixed"),
            {"dataset__behaviours": None},
            "dataset.behaviours=null: expected settings",
        ),
        (("stage=collect",), {"dataset": 5}, "dataset=5: expected one of the files in conf/dataset"),
        ((), {"belief": None}, "belief=null: expected one of the files in conf/belief"),
        ((), {"params__lambda_KL": -1}, "params.lambda_KL=-1: expected a number of at least 0"),
        ((), {"init_from": 5}, "init_from=5: expected a path or null"),
        ((), {"fqe__discount": 1}, "fqe.discount=1: expected a number of at least 0 and below 1"),
        ((), {"agent___target_": "slaterl.moon"}, "agent._target_=slaterl.moon: no such class ("),
    ],
)
def test_sections_and_parts_that_cannot_be(overrides: tuple[str, ...], values: dict[str, Any], said: str) -> None:
    text = refused(config(*overrides, **values))
    assert text.startswith(said) and "\n" not in text


def test_changed_file_of_items_is_read_again(tmp_path: Path) -> None:
    """Names of runs hold the content of the file, not its path."""
    file = tmp_path / "items.pt"
    cfg = config("env.item_embeddings.path=" + str(file))
    items = generate(cfg.env.num_items, cfg.env.num_topics, cfg.env.topic_size, 1.0, seed=1)
    torch.save(items, file)
    first, env = env_spec(cfg.env), simulator(cfg)
    assert first == env_spec(cfg.env) and simulator(cfg) is env
    torch.save(items.flip(0), file)
    os.utime(file, ns=(1, 1))  # a file system with coarse times
    assert first != env_spec(cfg.env) and simulator(cfg) is not env
