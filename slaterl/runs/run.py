"""The folder of a product: its name is computed from everything that determines it; it has a manifest and a lock."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import inspect
import json
import os
import platform
import re
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from slaterl.console import note, tell
from slaterl.errors import Interrupted, Pruned, UserError
from slaterl.runs.files import fingerprint_of, read_json, write_json

WAIT_POLL_SECONDS = 0.5  # seconds between polls of the lock; on a shared file system every poll is a request
# Part of every digest, by stage. Raise a number when a code change makes old products stale; everything that starts
# from them gets new digests, too.
PRODUCTS = {"collect": 3, "evaluate": 3, "offline": 3}
_OTHER_PRODUCTS = 2
_PACKAGES = ("slaterl", "torch", "lightning", "hydra-core", "omegaconf", "numpy", "safetensors")


@dataclass(frozen=True)
class Run:
    """One product: `root/stage/env/name-digest`.

    Attributes:
        products: files that other runs read. A run without them is not finished, whatever its manifest says.
        spec: everything that determines the product, as plain values; inputs enter by their digests. Its hash is the
            digest.
    """

    root: Path
    stage: str
    env: str
    name: str
    spec: dict[str, Any]
    products: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        products = PRODUCTS.get(self.stage, _OTHER_PRODUCTS)
        text = json.dumps(_canonical({"products": products, "stage": self.stage, **self.spec}), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    @property
    def path(self) -> Path:
        name = re.sub(r"(?<=\d)\.0(?!\d)", "", self.name)  # 1 and 1.0 are one setting, also here
        return self.root / self.stage / self.env / f"{name}-{self.digest}"

    @property
    def manifest(self) -> dict[str, Any]:
        """The current manifest; {} if it does not exist."""
        return read_json(self.path / "manifest.json") if (self.path / "manifest.json").is_file() else {}

    @property
    def finished(self) -> bool:
        there = all((self.path / name).is_file() for name in self.products)
        return there and self.manifest.get("status") == "finished"

    def result(self) -> dict[str, Any]:
        return read_json(self.path / "result.json")

    def kept_in(self, folder: Path) -> Run | None:
        """Return this run as it lies in a folder of kept results, without checkpoints; None if it does not.

        Raises:
            UserError: its manifest is damaged.
        """
        kept = replace(self, root=folder, products=("result.json",))
        if not kept.finished:
            return None
        tell(run=str(kept.path))
        kept._tell_changed_code()
        note(f"already finished {kept.manifest['ended']}: {kept.path}")
        return kept

    def _made_by(self) -> dict[str, str]:
        """Fingerprints of the code that started this run (see code_of); {} if nothing was started."""
        begun = self.finished or (self.path / "last.ckpt").is_file()
        return self.manifest.get("code", {}) if begun else {}

    @contextlib.contextmanager
    def making(self, config: DictConfig, inputs: Mapping[str, Run]) -> Iterator[bool]:
        """Hold the run's lock. Yields True if the product is missing.

        The operating system releases the lock (flock) when its process ends, for whatever reason. It also holds
        between machines that share the file system. A process that waited for it finds the product finished, or
        resumes it.

        Raises:
            UserError: the folder cannot be written.
        """
        tell(run=str(self.path))
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / ".lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                note(f"waiting for another process that is making {self.path}")
                tell(title=f"waiting for {self.stage}", done=0, total=0, unit="", speed=None, score=None)
                lock.acquire(poll_interval=WAIT_POLL_SECONDS)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror})") from error
        with lock:
            before = self.manifest
            for run in (self, *inputs.values()):
                run._tell_changed_code()
            if self.finished:
                note(f"already finished {before['ended']}: {self.path}")
                yield False
                return
            entry = {
                "stage": self.stage,
                "status": "running",
                "spec": self.spec,
                "inputs": {name: {"path": str(run.path), "digest": run.digest} for name, run in inputs.items()},
                "config": OmegaConf.to_container(config, resolve=True),
                "versions": versions(),
                "code": code_of(self.spec) | self._made_by(),
                "python": platform.python_version(),
                **self._arithmetic(config),
                "machine": {"host": socket.gethostname(), "system": platform.platform(), "cores": os.cpu_count()},
                "command": _command(),
                "started": before.get("started", _now()),
                "starts": before.get("starts", 0) + 1,
            }
            try:
                self._write(entry)
                yield True
            except (Interrupted, Pruned) as error:
                self._write({**entry, "status": "interrupted", "reason": str(error), "ended": _now()})
                raise
            except BaseException as error:
                reason = f"{type(error).__name__}: {error}"
                with contextlib.suppress(UserError):  # a full disk must not hide the reason
                    self._write({**entry, "status": "failed", "reason": reason, "ended": _now()})
                raise
            self._write({**entry, "status": "finished", "ended": _now()})

    def _arithmetic(self, config: DictConfig) -> dict[str, Any]:
        """Return what results to the bit depend on: the number of threads that make this run, and what multiplies.

        `earlier_threads` are others that it began with. With threads=auto, a run resumes with its own number.
        """
        import torch  # here, because the launchers import this module and must start at once

        from slaterl.layers import products_by

        threads, before = torch.get_num_threads(), self.manifest
        multiplied = {"products_by": products_by()}
        if "threads" not in before or not (self.path / "last.ckpt").is_file():
            return {"threads": threads, **multiplied}
        if config.get("threads") == "auto":
            threads = before["threads"]
        earlier = sorted({*before.get("earlier_threads", []), before["threads"]} - {threads})
        return {"threads": threads, **multiplied, **({"earlier_threads": earlier} if earlier else {})}

    def _tell_changed_code(self) -> None:
        code = code_of(self.spec)
        changed = [name for name, made_by in self._made_by().items() if code.get(name) != made_by]
        if changed:
            what = f"the code of {', '.join(changed)} changed since this was made"
            note(f"warning: {what}; remove the folder to make it again: {self.path}")

    def _write(self, entry: dict[str, Any]) -> None:
        write_json(self.path / "manifest.json", entry)


def versions() -> dict[str, str]:
    """Versions of the packages that determine results."""
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


def code_of(spec: Mapping[str, Any]) -> dict[str, str]:
    """Fingerprints by name of the modules that define the classes of a spec's `_target_`s and their base classes."""
    found: dict[str, str] = {}
    for value in spec.values():
        found |= code_of(value) if isinstance(value, Mapping) else {}
    if "_target_" in spec:
        target = get_object(spec["_target_"])
        ours = {"slaterl", target.__module__.split(".")[0]}  # torch and other packages are in `versions`
        modules = {base.__module__ for base in (inspect.getmro(target) if inspect.isclass(target) else (target,))}
        for name in sorted(name for name in modules if name.split(".")[0] in ours):
            found[name] = fingerprint_of(Path(inspect.getfile(sys.modules[name])))
    return found


def record_death(folder: Path, reason: str) -> None:
    """Write the reason into the manifest of a run whose process was killed and could not do it."""
    with contextlib.suppress(Timeout), FileLock(folder / ".lock").acquire(timeout=0):
        manifest = read_json(folder / "manifest.json")
        if manifest["status"] == "running":
            write_json(folder / "manifest.json", {**manifest, "status": "failed", "reason": reason, "ended": _now()})


def _command() -> list[str]:
    """The command that makes this run. In a job, sys.argv belongs to the sweep or to submitit."""
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        return [str(Path(__file__).parents[1] / "run.py"), *HydraConfig.get().overrides.task]
    return sys.argv


def _canonical(value: Any) -> Any:
    """Replace whole floats by ints, so that 1 and 1.0 are the same setting."""
    if isinstance(value, Mapping):
        return {key: _canonical(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(entry) for entry in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
