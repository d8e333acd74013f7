"""stage=export with a checkpoint: a policy that acts without slaterl."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from slaterl.agents import exported
from slaterl.agents.loading import policy_of, reader_of
from slaterl.config.build import simulates
from slaterl.config.check import given_keys
from slaterl.console import note
from slaterl.data.formats.checks import require_package
from slaterl.errors import UserError
from slaterl.runs.files import fingerprint_of, write_json
from slaterl.runs.products import Make, Product
from slaterl.runs.run import Run
from slaterl.stages.elsewhere import refuse_own_parts
from slaterl.training import checkpoints

POLICY, ONNX, ABOUT = "policy.pt2", "policy.onnx", "policy.json"
CHECKED = {"users": 50, "turns": 20}


def exported_policy(cfg: DictConfig) -> Product:
    """Return the policy of `checkpoint` as files. If it learned from a log, the log's own ids of the items go along."""
    file, onnx, given = Path(cfg.checkpoint), cfg.export.onnx, given_keys()
    refuse_own_parts(file, given)
    for key in sorted(given):
        if key.split(".")[0] in ("env", "click_model", "dataset"):
            raise UserError(f"{key}: a policy is exported for the items that it learned on; leave it out")
    state = checkpoints.load(file, "agent")
    config, step, content = state["config"], state["learner"]["step"], fingerprint_of(file)
    spec = {"checkpoint": content, "onnx": onnx}
    files = ("result.json", POLICY, ABOUT, *([ONNX] if onnx else []))
    name, env_name = f"{config['agent']['name']}-step{step}", config["env"]["name"]
    run = Run(Path(cfg.paths.root), "export", env_name, name, spec, products=files)

    def begin() -> Make:
        if onnx:
            for package in ("onnx", "onnxscript"):
                require_package(package, "onnx", "export.onnx=true")
        loaded = policy_of(state, file)
        agent, env = reader_of(loaded, file), loaded.env
        exported.refuse_plans(agent, file)
        items = config.get("item_ids")
        if items is None and not simulates(config["env"]):
            note("the policy shows numbers of items, because its checkpoint does not hold the log's own ids")

        def make() -> dict[str, Any]:
            program = exported.record(agent, env.slate_size, file)
            exported.save(program, run.path / POLICY)
            if onnx:
                exported.save_onnx(program, run.path / ONNX, file)
            first = env.first_slate.cpu()
            write_json(run.path / ABOUT, {**exported.about(agent, env.num_items, first), "items": items}, indent=None)
            return {
                "agent": config["agent"]["name"],
                "step": step,
                "checkpoint": str(file.resolve()),
                "checkpoint_sha256": content,
                "item_embeddings": env.fingerprint,
                "same_slates": exported.agreement(agent, run.path / POLICY, first, **CHECKED),
                "checked_slates": CHECKED["users"] * CHECKED["turns"],
            }

        return make

    return Product(run, cfg, begin, {}, _show)


def _show(run: Run) -> None:
    result = run.result()
    paths = [path for path in (run.path / POLICY, run.path / ONNX) if path.is_file()]
    files = " and ".join(f"{path.name} ({path.stat().st_size / 1e6:.1f} MB)" for path in paths)
    note(f"{files}: {result['same_slates']:.1%} of {result['checked_slates']:,} slates as slaterl shows them")
