"""Contract of every agent in conf/agent, with every ranker that it can act through. A new file is tested at once."""

from __future__ import annotations

import copy
import functools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from slaterl.agents.base import Agent
from slaterl.agents.loading import load_policy
from slaterl.agents.offline.base import OfflineAgent, with_actions
from slaterl.agents.online.collecting import OnlineData
from slaterl.config.build import AGENT_NODES, build_agent, build_env, compares_items, parameters_of, plain
from slaterl.config.check import check_config
from slaterl.config.fits import is_gems
from slaterl.data.trajectories import Trajectories
from slaterl.envs.topic_rec import TopicRec
from slaterl.errors import UserError
from slaterl.evaluation.evaluate import evaluate
from slaterl.paths import CONF
from slaterl.rollout import rollout
from slaterl.run import run_stage
from slaterl.seeds import stream
from slaterl.training import checkpoints, metrics
from tests.helpers import compose_config

# Boredom sets in within an episode, there are several validations, and no size divides another evenly.
SIZES = """scale=smoke device=cpu threads=1 env.num_items=60 env.num_topics=5 env.slate_size=4 env.episode_length=7
env.boredom_threshold=2 max_steps=34 random_steps=11 num_envs=5 batch_size=3 capacity=20 val_every_n_steps=10
log_every_n_steps=5 val_users=6 test_users=6 logged_data.trajectories=30 dataset=random collect.trajectories=24
offline.max_steps=11 offline.batch_size=3 offline.val_every_n_steps=4 offline.val_users=6 offline.test_users=6
offline.log_every_n_steps=2 offline.save_every_n_steps=5"""
SMALL = SIZES.split()
PLANNER = [
    *("agent.context=5", "agent.horizon=4", "agent.width=16", "agent.heads=2", "agent.item_dim=4"),
    *("agent.steps=8", "agent.sample_steps=3", "agent.q_hidden=[16,16]"),
]
SMALL_AGENT = {  # sizes of agents that take long to act
    "decision_diffuser": [*PLANNER, "agent.warm_steps=2"],
    "diffusion_veteran": [*PLANNER, "agent.candidates=3"],
}


def settings(agent: str, ranker: str | None, *more: str) -> DictConfig:
    given = [f"ranker={ranker}"] if ranker else []
    stage = [] if any(setting.startswith("stage=") for setting in more) else [f"stage={stage_of(agent)}"]
    return compose_config(*SMALL, f"agent={agent}", *SMALL_AGENT.get(agent, []), *given, *stage, *more)


def stage_of(agent: str) -> str:
    """Return the stage that trains an agent."""
    return "offline" if agent in learners(offline=True) else "online"


@functools.cache
def learners(offline: bool = False) -> list[str]:
    """List the agents that learn in the simulator, or from datasets."""
    source = "dataset" if offline else "simulator"
    names = sorted(file.stem for file in (CONF / "agent").glob("*.yaml"))
    classes = {name: get_object(OmegaConf.load(CONF / "agent" / f"{name}.yaml")["_target_"]) for name in names}
    return [name for name, its in classes.items() if issubclass(its, Agent) and source == its.LEARNS_FROM]


def takes(agent: str, what: str) -> bool:
    """Whether an agent takes a ranker, or a belief."""
    target = OmegaConf.load(CONF / "agent" / f"{agent}.yaml")["_target_"]
    return what in parameters_of(get_object(target))


RANKERS = sorted(file.stem for file in (CONF / "ranker").glob("*.yaml") if file.stem != "none")
PRETRAINED = [ranker for ranker in RANKERS if is_gems(compose_config(f"ranker={ranker}"))]
# the transformer's latent space is that of gems, so an agent of each kind is enough for it
WITH_TRANSFORMER = ("sac", "reinforce", "td3_bc", "bcq", "plas", "decision_transformer", "decision_diffuser")
PAIRS = [
    (agent, ranker)
    for agent in learners() + learners(offline=True)
    for ranker in (RANKERS if takes(agent, "ranker") else [None])
    if ranker != "gems_transformer" or agent in WITH_TRANSFORMER
]
pairs = pytest.mark.parametrize(("agent", "ranker"), PAIRS)
BELIEFS = [
    f"belief={file.stem}" for file in sorted((CONF / "belief").glob("*.yaml")) if file.stem not in ("gru", "none")
]
# settings other than an agent's defaults
VARIANTS = [
    ("slateq", "agent.serving=greedy agent.training=greedy env.diversity_penalty=3 env.diversity_threshold=2"),
    ("slateq", "agent.training=sarsa agent.credit=every_click"),
    ("reinforce_slate", "agent.credit=every_click agent.top_k_correction=true"),
    ("wolpertinger", "agent.neighbours=1 item_embeddings=scratch"),
    *((agent, "belief=none") for agent in learners() if takes(agent, "belief")),
    ("best_constant_slate", "agent.candidates=4 agent.parents=2 agent.users=1"),
    ("bc", "agent.policy=gaussian agent.top_fraction=0.5"),
    ("slate_bc", "agent.unique=true agent.turns=2"),
    ("cql", "agent.threshold=1.0"),
    ("plas", "agent.vae_share=0.1"),
    ("gfn4rec", "agent.balance=trajectory agent.unique=false agent.turns=3"),
    ("gfn4rec_offline", "agent.turns=2"),
    ("hac", "agent.alignment=1 item_embeddings=scratch"),
    ("decision_transformer", "agent.heads=2 agent.context=3 agent.target_return=5"),
    ("decision_diffuser", "agent.condition=advantage"),
    ("decision_diffuser", "agent.guidance=1 agent.replan_every=1 agent.warm_steps=null"),
    ("diffusion_veteran", "agent.replan_every=3 agent.warm_steps=1"),
]
# agents that learn from windows with the return or the frames that follow, which have tests of their own
SEQUENCE_MODELS = ("decision_transformer", "decision_diffuser", "diffusion_veteran")
READ_A_BELIEF = [pair for pair in PAIRS if takes(pair[0], "belief") and pair[0] not in SEQUENCE_MODELS]
# agents that read one belief, two in one pass, and two joined while they act
WITH_BELIEFS = [(agent, belief) for agent in ("slate_bc", "sac", "td3_bc", "bcq") for belief in BELIEFS]
SHARED = [(agent, "belief.shared=true") for agent in ("sac", "td3", "wolpertinger", "td3_bc", "iql", "bcq")]
WITH_BELIEFS += [*SHARED, ("sac", "belief=transformer belief.shared=true")]


def build(cfg: DictConfig) -> tuple[Agent, TopicRec]:
    check_config(cfg)
    env = build_env(cfg.env, torch.device("cpu"))
    return build_agent({name: plain(cfg[name]) for name in AGENT_NODES}, env, seed=3), env


def serve(agent: Agent, env: TopicRec, count: int = 6, explore: int | None = 0) -> Trajectories:
    """Serve `count` users with the agent. `explore` seeds its exploration; None acts greedily."""
    policy = agent.policy(None if explore is None else stream(explore, "exploration"))
    users = stream(5, "users")
    return rollout(policy, env, count, generator=users, deterministic=explore is None, hidden=agent.sees_hidden)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a home with logged data, pretrained rankers, item embeddings and a dataset, which the agents need."""
    home = tmp_path_factory.mktemp("inputs")
    pretrained = [("pretrain", [f"ranker={ranker}"]) for ranker in PRETRAINED]
    for stage, more in (*pretrained, ("mf", ["item_embeddings=mf"]), ("collect", [])):
        run_stage(compose_config(*SMALL, f"stage={stage}", f"paths.root={home}", *more))
    return home


def copy_home(inputs: Path, home: Path) -> Path:
    shutil.copytree(inputs, home)
    for manifest in home.rglob("manifest.json"):  # the paths of their inputs are not read again
        assert json.loads(manifest.read_text())["status"] == "finished"
    return home


def outcome(folder: Path) -> tuple[dict[str, Any], list[dict[str, str]], dict[str, Any]]:
    """Read the products of a run without times: result, metrics and last checkpoint."""
    result = {key: value for key, value in json.loads((folder / "result.json").read_text()).items() if key != "seconds"}
    rows = [
        {key: value for key, value in row.items() if not key.startswith(("time/", "speed/"))}
        for row in metrics.read(folder / "metrics.csv")
    ]
    last = checkpoints.load(folder / "last.ckpt", "agent")
    del last["seconds"]
    return result, rows, last


def same(a: Any, b: Any) -> bool:
    """Compare bit for bit, tensors and NaN included."""
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


class Stopped(Exception):
    """Raised in the middle of training."""


@pytest.mark.parametrize(
    ("agent", "ranker", "more"),
    [
        *((agent, ranker, "") for agent, ranker in PAIRS),
        *((agent, None, belief) for agent, belief in WITH_BELIEFS if agent in ("slate_bc", "sac", "td3_bc")),
    ],
)
def test_trains_resumes_and_is_evaluated_from_its_checkpoint(
    agent: str, ranker: str | None, more: str, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slaterl.stages.agent.plot_curves", lambda *given: None)  # a second each
    through = copy_home(inputs, tmp_path / "through")
    run_stage(settings(agent, ranker, *more.split(), f"paths.root={through}"))
    stage, steps = stage_of(agent), {"online": 34, "offline": 11}[stage_of(agent)]
    (folder,) = (file.parent for file in through.glob(f"{stage}/*/*/result.json"))
    result, rows, last = outcome(folder)
    target = get_object(settings(agent, ranker).agent["_target_"])
    assert result["steps"] == last["learner"]["step"] == steps
    training = [row for row in rows if row[target.TERMS[0]]]
    assert training and all(math.isfinite(float(row[name])) for row in training for name in target.TERMS)

    # stopped within a round, between two validations, and resumed
    disturbed = copy_home(inputs, tmp_path / "disturbed")
    update, calls = target.update, []

    def stopping(self: Any, batch: Any) -> Any:
        calls.append(1)
        if len(calls) == (12 if stage == "online" else 7):
            raise Stopped
        return update(self, batch)

    cfg = settings(agent, ranker, *more.split(), f"paths.root={disturbed}")
    monkeypatch.setattr(target, "update", stopping)
    with pytest.raises(Stopped):
        run_stage(cfg)
    monkeypatch.setattr(target, "update", update)
    (other,) = (file.parent for file in disturbed.glob(f"{stage}/*/*/last.ckpt"))
    assert 0 < checkpoints.load(other / "last.ckpt", "agent")["learner"]["step"] < steps
    run_stage(settings(agent, ranker, *more.split(), f"paths.root={disturbed}"))
    assert same(outcome(other), (result, rows, last))

    alone = tmp_path / "alone" / "some.ckpt"
    alone.parent.mkdir()
    shutil.copy(folder / "best.ckpt", alone)
    shutil.rmtree(through)
    loaded = load_policy(alone)
    for _ in range(2):  # acting without exploration is repeatable
        tested = evaluate(loaded.policy, loaded.env, result["test_users"], result["seed"], "test")
        assert tested.mean_return == result["test_return"]


def learns(cfg: DictConfig) -> None:
    """Check that updates move exactly the trained parameters and targets, and return finite terms by name."""
    agent, env = build(cfg)
    if agent.LEARNS_FROM == "dataset":
        agent.prepare(serve(agent, env))
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    trained = {name for name, parameter in agent.named_parameters() if parameter.requires_grad}
    for turn in range(4):
        batch = serve(agent, env, count=8, explore=turn)
        if isinstance(agent, OfflineAgent):
            batch = with_actions(batch, agent.ranker)
        agent.step += 1
        terms = agent.update(batch)
        assert set(terms) == set(agent.TERMS)
        assert all(value.ndim == 0 and value.isfinite() for value in terms.values())
    if not agent.optim:  # it searches
        assert not trained and any(not torch.equal(value, before[name]) for name, value in agent.state_dict().items())
        return
    optimised = {
        id(parameter) for optimizer in agent.optim.values() for g in optimizer.param_groups for parameter in g["params"]
    }
    assert trained and optimised == {id(parameter) for name, parameter in agent.named_parameters() if name in trained}
    for name, value in agent.state_dict().items():
        moved = not torch.equal(value, before[name])
        follows = (name.startswith("target_") and name != "target_return") or name in ("actor_loss", "of_policy")
        assert moved == (name in trained or follows), name
        if name.startswith("ranker."):
            assert name not in trained


@pairs
def test_every_parameter_learns_or_rests(agent: str, ranker: str | None) -> None:
    learns(settings(agent, ranker))


@pytest.mark.parametrize(("agent", "more"), VARIANTS + WITH_BELIEFS)
def test_variants_learn(agent: str, more: str) -> None:
    learns(settings(agent, None, *more.split()))


@pytest.mark.parametrize("items", ["ideal", "scratch"])
@pytest.mark.parametrize(
    ("agent", "ranker"), [pair for pair in PAIRS if pair[0] in learners() and pair[1] not in PRETRAINED]
)
def test_item_embeddings_fit_or_are_refused(agent: str, ranker: str | None, items: str) -> None:
    """Item embeddings other than the matrix factorisation, which is tested as the default."""
    cfg = settings(agent, ranker, f"item_embeddings={items}")
    if compares_items(cfg):
        learns(cfg)
    elif items != "scratch":  # scratch is the default of the group, so agents that ignore it accept it
        with pytest.raises(UserError, match="leave out item_embeddings"):
            build(cfg)


@pytest.mark.parametrize(("agent", "more"), SHARED)
def test_only_the_critics_train_a_shared_belief(agent: str, more: str, monkeypatch: pytest.MonkeyPatch) -> None:
    built, env = build(settings(agent, None, more))
    shared = {id(parameter) for parameter in built.critic_belief.parameters()}
    stepped = {
        name: {id(parameter) for group in optimizer.param_groups for parameter in group["params"]} & shared
        for name, optimizer in built.optim.items()
    }
    assert {name for name, found in stepped.items() if found} == {"critic"} and stepped["critic"] == shared
    backward: dict[str, set[int]] = {}

    def watched(name: str, loss: Tensor) -> None:
        gradients = torch.autograd.grad(
            loss, list(built.critic_belief.parameters()), retain_graph=True, allow_unused=True
        )
        backward[name] = {number for number, gradient in enumerate(gradients) if gradient is not None}
        loss.backward(retain_graph=True)  # terms read the gradients

    monkeypatch.setattr(built, "minimise", watched)
    monkeypatch.setattr(built, "descend", lambda **losses: [watched(name, loss) for name, loss in losses.items()])
    batch = serve(built, env)
    if isinstance(built, OfflineAgent):
        batch = built.prepare(with_actions(batch, built.ranker))
    built.step = 2
    built.update(batch)
    assert len(backward) >= 2 and len(backward["critic"]) == len(shared)
    assert not any(found for name, found in backward.items() if name != "critic")


@pairs
def test_acts(agent: str, ranker: str | None) -> None:
    built, env = build(settings(agent, ranker))
    data = serve(built, env, explore=None)
    assert data.slates.shape == (6, env.episode_length + 1, env.slate_size)
    assert int(data.slates.max()) < env.num_items
    assert torch.equal(data.slates, serve(built, env, explore=None).slates)
    exploring = serve(built, env, explore=0)
    assert torch.equal(exploring.slates, serve(built, env, explore=0).slates)
    assert torch.equal(exploring.slates, serve(built, env, explore=1).slates) != built.stochastic
    random = rollout(
        built.random_policy(stream(0, "random")), env, 6, generator=stream(5, "users"), deterministic=False
    )
    assert random.slates.shape == data.slates.shape
    assert random.columns().keys() == {key for key in exploring.columns() if not key.startswith("hidden")}


@pytest.mark.parametrize("ranker", RANKERS)
def test_a_temperature_makes_any_agent_draw(ranker: str) -> None:
    warm, cold = (build(settings("td3_bc", ranker, f"ranker.temperature={t}"))[0] for t in (1, 0))
    env = build(settings("td3_bc", ranker))[1]
    assert warm.stochastic and not cold.stochastic
    greedy = serve(cold, env, explore=None).slates
    assert torch.equal(serve(warm, env, explore=None).slates, greedy), "deterministic acting stays the argmax"
    assert torch.equal(serve(cold, env).slates, greedy)
    drawn = serve(warm, env).slates
    assert torch.equal(drawn, serve(warm, env).slates)
    assert not torch.equal(drawn, greedy) and not torch.equal(drawn, serve(warm, env, explore=1).slates)


@pytest.mark.parametrize("ranker", RANKERS)
def test_unique_slates(ranker: str) -> None:
    built, env = build(settings("sac", ranker, "ranker.unique=true"))
    slates = serve(built, env).slates[:, 1:].flatten(0, 1)
    assert (slates.sort(dim=1).values.diff(dim=1) > 0).all()


@pytest.mark.parametrize(("agent", "ranker"), READ_A_BELIEF)
def test_a_turn_has_not_seen_what_it_is_to_choose(agent: str, ranker: str | None) -> None:
    """The state at turn t depends on the frames up to t, and not on frame t + 1 of the record.

    Sequence models read the future return, or noise in future frames, so they have tests of their own.
    """
    built, env = build(settings(agent, ranker))
    batch = serve(built, env)
    seen: list[Tensor] = []
    network = built.actor if hasattr(built, "actor") else built.critic
    network.register_forward_hook(lambda module, given, output: seen.append(given[0].detach().clone()))

    def states(batch: Trajectories) -> Tensor:
        """Return the input of the first network in an update, [B, H, state]."""
        seen.clear()
        built_now = copy.deepcopy(built)
        built_now.step = 1000  # late enough for every part to learn
        built_now.update(with_actions(batch, built_now.ranker) if isinstance(built_now, OfflineAgent) else batch)
        return next(given for given in seen if given.shape[1] == env.episode_length)

    own = states(batch)
    for turn in (0, 3):
        for column in ("slates", "clicks"):
            other = copy.deepcopy(batch)
            frame = getattr(other, column)[:, turn + 1]
            frame.copy_((frame + 1) % 2)
            changed = states(other)
            assert torch.equal(changed[:, : turn + 1], own[:, : turn + 1])
            assert (changed[:, turn + 1] != own[:, turn + 1]).any()


@pytest.mark.parametrize(
    "agent", [name for name in learners() if get_object(settings(name, None).agent["_target_"]).ON_POLICY]
)
@pytest.mark.parametrize("stop", [None, 1, 4])
def test_on_policy_takes_each_trajectory_once(agent: str, stop: int | None) -> None:
    """Rounds of 5 in batches of 3 up to 12 trajectories, also after resuming in the middle of a round."""

    def data_of(built: Agent, env: TopicRec) -> OnlineData:
        names = ("users", "exploration", "batches")
        streams = {name: stream(0, name) for name in names}
        sizes = dict(max_steps=12, random_steps=6, num_envs=5, batch_size=3, capacity=100)
        return OnlineData(env, built, **sizes, **streams)

    built, env = build(settings(agent, None))
    data, batches, lengths = data_of(built, env), [], []
    loader = data.train_dataloader()
    assert len(loader) == 5
    for number, batch in enumerate(loader):
        batches.append(batch.slates.clone())
        built.step += built.steps_in(batch)
        lengths.append(len(loader))
        if number == stop:
            other, _ = build(settings(agent, None))
            other.step = built.step
            resumed = data_of(other, env)
            resumed.load_state_dict(copy.deepcopy(data.state_dict()))
            for rest in resumed.train_dataloader():
                batches.append(rest.slates.clone())
                other.step += other.steps_in(rest)
            data = resumed
            break
    assert [len(batch) for batch in batches] == [3, 2, 3, 2, 2]
    assert lengths == [4, 3, 2, 1, 0][: len(lengths)]
    assert data.counters["trajectories"] == 12 and data.counters["updates"] == 5
    users = stream(0, "users")
    policy, expected = built.policy(stream(0, "exploration")), []
    for count in (5, 5, 2):
        expected.append(rollout(policy, env, count, generator=users, deterministic=False, hidden=built.sees_hidden))
    assert torch.equal(torch.cat(batches), torch.cat([part.slates for part in expected]))


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["agent=dqn", "ranker=gems"], ["agent=dqn chooses the items", "use ranker=none instead of ranker=gems"]),
        (["ranker=gems", "item_embeddings=mf"], ["item_embeddings=mf: ranker=gems learns its own"]),
        (["agent=slateq", "ranker=top_k"], ["agent=slateq chooses the items", "use ranker=none"]),
        (["agent=best_constant_slate", "belief=none"], ["belief=none: agent=best_constant_slate reads no belief"]),
        (["agent=best_constant_slate", "agent.parents=100"], ["agent.parents=100", "less than agent.candidates=100"]),
        (["agent=td3", "ranker=none"], ["agent=td3 acts through a ranker", "gems, top_k or k_head_argmax"]),
        (["agent=sac", "item_embeddings=ideal"], ["item_embeddings=ideal", "learns its own"]),
        (["agent=dqn", "item_embeddings=mf"], ["item_embeddings=mf", "agent=dqn learns its own"]),
        (["agent=td3_bc"], ["agent=td3_bc learns from a dataset", "stage=offline"]),
        (["agent=sac", "stage=offline"], ["agent=sac learns in the simulator", "stage=online"]),
        (["agent=bc", "stage=offline", "belief=none"], ["belief=none", "use belief=gru"]),
        (["agent=dqn", "belief.shared=true"], ["belief.shared=true", "agent=dqn has no belief for critics"]),
        (["agent=bc", "stage=offline", "ranker=none"], ["agent=bc acts through a ranker"]),
        (["agent=slate_bc", "stage=offline", "belief=none"], ["belief=none", "use belief=gru"]),
        (["agent=slate_bc", "stage=offline", "ranker=gems"], ["agent=slate_bc chooses the items", "use ranker=none"]),
        (["agent=slate_bc", "stage=offline", "offline.actions=encoded"], ["offline.actions=encoded", "leave it out"]),
        (["agent=slate_bc", "stage=offline", "offline.validation=fqe"], ["offline.validation=fqe", "use simulator"]),
        (["agent=bc", "stage=offline", "offline.actions=all"], ["offline.actions=all", "auto, recorded or encoded"]),
        (["stage=collect", "dataset.actions=some"], ["dataset.actions=some", "true or false or auto"]),
        (["stage=collect", "dataset.actions=true"], ["dataset.actions=true", "no behaviour has actions"]),
        (["agent=edac", "stage=offline", "agent.num_critics=1"], ["agent.num_critics=1", "at least 2"]),
        (["agent=cql", "stage=offline", "agent.gamma=1.5"], ["agent.gamma=1.5", "from 0 to 1"]),
        (["agent=bc", "stage=offline", "+agent.q_lr=1"], ["agent.q_lr", "no such setting"]),
        (["stage=collect", "dataset.behaviour.noise=2"], ["dataset.behaviour.noise=2", "from 0 to 1"]),
        (["stage=collect", "dataset.behaviour.noise=0.5"], ["noise=0.5", "random", "use epsilon"]),
        (
            ["stage=collect", "dataset=medium", "dataset.run.agent=td3_bc"],
            ["dataset.run: agent=td3_bc", "from a dataset"],
        ),
        (["stage=collect", "dataset=medium", "dataset.run.agent=random"], ["dataset.run: agent=random", "not learn"]),
        (["stage=collect", "dataset=medium", "dataset.run.agent=dqn"], ["dataset.run: agent=dqn", "use ranker=none"]),
        (["stage=collect", "dataset=medium", "dataset.run.agent=sax"], ["dataset.run.agent=sax", "conf/agent"]),
        (["stage=collect", "dataset.seed=-1"], ["dataset.seed=-1", "at least 0"]),
        (["stage=collect", "dataset=medium", "dataset.run.train=false"], ["not trained", "dataset.run.train=true"]),
        (["stage=collect", "dataset.behaviour.checkpoint=no.ckpt"], ["dataset.behaviour.checkpoint=no.ckpt"]),
        (["stage=collect", "dataset=file", "dataset.path=no.npz"], ["dataset.path=no.npz", "no such file"]),
        (["stage=collect", "dataset=file"], ["dataset.path", "a value is needed"]),
        (["stage=evaluate", "evaluation=fqe", "fqe.lr=-1"], ["fqe.lr=-1", "above zero"]),
        (["stage=evaluate", "evaluation=fqe", "fqe.tau=2"], ["fqe.tau=2", "above 0 and at most 1"]),
        (["stage=evaluate", "evaluation=fqe", "fqe.discount=1"], ["fqe.discount=1", "below 1"]),
        (["stage=evaluate", "evaluation=fqe"], ["checkpoint", "evaluation=fqe"]),
        (["init_from=no.ckpt"], ["no.ckpt", "no such checkpoint"]),
        (["agent=random"], ["agent=random does not learn", "stage=evaluate agent=random"]),
        (["agent=constant_slate", "ranker=top_k", "stage=evaluate"], ["ranker=top_k", "ranker=gems or agent.slate"]),
        (["agent=sac", "ranker=top_k", "ranker.unique=false"], ["ranker.unique=false", "never repeat"]),
        (["agent=wolpertinger", "agent.neighbours=61"], ["agent.neighbours=61", "env.num_items=60"]),
        (["agent=slateq", "agent.training=best"], ["agent.training=best", "topk, greedy or sarsa"]),
        (["agent=reinforce_slate", "agent.credit=all"], ["agent.credit=all", "first_click or every_click"]),
        (["agent=constant_slate", "stage=evaluate", "agent.slate=[1,2]"], ["agent.slate=[1, 2]", "4 item ids"]),
        (["item_embeddings=mf", "item_embeddings.lr=0", "agent=wolpertinger"], ["item_embeddings.lr=0", "above zero"]),
        (["stage=mf"], ["item_embeddings=scratch", "nothing to train"]),
        (["stage=pretrain", "ranker=top_k"], ["ranker=top_k", "nothing to pretrain"]),
    ],
)
def test_misfits_are_refused_before_anything_is_made(overrides: list[str], parts: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        run_stage(compose_config(*SMALL, *overrides, f"paths.root={tmp_path}/home"))
    assert all(part in str(error.value) for part in parts), str(error.value)
    assert not list((tmp_path / "home").rglob("result.json"))
