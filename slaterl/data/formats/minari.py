"""Trajectories as a Minari dataset, and back."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slaterl.data.trajectories import Trajectories, check_ids, smallest_int
from slaterl.errors import UserError
from slaterl.runs.files import fingerprint_of, first_line

DESCRIPTION = (
    "Slate recommendation, written by slaterl. An observation is a slate and its clicks; observation 0 is what reset "
    "shows. Action t is the slate of observation t + 1, its reward the number of clicks there. The horizon is the "
    "task's own: episodes end in a termination."
)


def export(data: Trajectories, metadata: dict[str, Any], dataset_id: str, num_items: int) -> Path:
    """Write a dataset for `minari.load_dataset(dataset_id)`, whole or not at all.

    An episode has observations {"slate": [H+1, S], "clicks": [H+1, S]}, actions [H, S] (the slates of frames 1..H),
    rewards [H] and, as slaterl/TopicRec-v0 has it, a termination at its end. Latent actions and hidden state stay
    behind; policy_id goes along.

    Args:
        metadata: plain values; JSON text in the dataset's own metadata, under `slaterl`.
        dataset_id: as Minari has them, (namespace/)name-v(version). Datasets lie in $MINARI_DATASETS_PATH, or else in
            ~/.minari/datasets.

    Returns:
        the dataset's folder.

    Raises:
        UserError: not an id, or one that exists; item ids out of range, or no trajectories; the disk is full or the
            folder cannot be written; Minari or h5py is not installed.
    """
    where = f"minari:{dataset_id}"
    minari = _minari(where)
    from minari.dataset.minari_dataset import parse_dataset_id
    from minari.namespace import create_namespace, list_local_namespaces
    from minari.storage import get_dataset_path

    try:
        namespace = parse_dataset_id(dataset_id)[0]
    except (TypeError, ValueError) as error:
        expected = "expected (namespace/)name-v(version), the namespace of two characters or more"
        raise UserError(f"{where}: not a dataset id, {expected}") from error
    check_ids(data.slates, num_items, where)
    try:
        root, target = get_dataset_path(), get_dataset_path(dataset_id)
        if target.exists():
            raise UserError(f"{where}: exists already in {root}; expected a new name or version")
        with tempfile.TemporaryDirectory(prefix=".slaterl-", dir=root) as hidden:  # Minari lists no hidden folders
            partial = Path(hidden, "dataset")
            _reserve(Path(hidden, "room"), data)
            _write(partial / "data", data, num_items, _header(data, metadata, dataset_id, minari.__version__))
            if namespace is not None and namespace not in list_local_namespaces():
                create_namespace(namespace)
            partial.rename(target)
    except (OSError, RuntimeError) as error:  # h5py has either
        raise UserError(f"{where}: cannot be written ({first_line(error)})") from error
    return target


def exported(dataset_id: str, checksum: str) -> Path | None:
    """Folder of the Minari dataset that was exported from the trajectories with this checksum; None if there is none.

    A dataset of that name that has other data, another origin, or cannot be read is none either: `export` refuses to
    replace it.

    Raises:
        UserError: Minari or h5py is not installed.
    """
    minari = _minari(f"minari:{dataset_id}")
    from minari.storage import get_dataset_path

    try:
        header = minari.load_dataset(dataset_id).storage.metadata
        same = json.loads(header["slaterl"])["checksum"] == checksum
        return get_dataset_path(dataset_id) if same else None
    except Exception:  # h5py, json and Minari each have their own for a damaged dataset
        return None


def _header(data: Trajectories, metadata: dict[str, Any], dataset_id: str, version: str) -> dict[str, Any]:
    header = {"dataset_id": dataset_id, "minari_version": version, "description": DESCRIPTION}
    header["slaterl"] = json.dumps(metadata)
    if data.policy_id is not None:
        header["slaterl_policy_id"] = data.policy_id.tolist()
    return header


def _reserve(file: Path, data: Trajectories) -> None:
    """Raise OSError where there is no room: a write that fails inside HDF5 can end the process by a segmentation fault.

    Of the size of a dataset, at most: chunks are whole, and HDF5 takes some 18 kB for the six columns of an episode.
    """
    frames = data.slates[0].numel() * 12  # slate, action and clicks in at most 4 + 4 + 1 bytes, and the rewards
    with open(file, "wb") as room:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(room.fileno(), 0, 2**20 + len(data) * (2 * frames + 24_000))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):  # not: this file system cannot do that
                raise
    file.unlink()


def _write(folder: Path, data: Trajectories, num_items: int, header: dict[str, Any]) -> None:
    """All episodes through one open file: with `create_dataset_from_buffers` they would all be buffers first."""
    from gymnasium import spaces
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    slates = data.slates.cpu().to(smallest_int(num_items + 1)).numpy()  # the type must hold num_items itself, too
    clicks = data.clicks.cpu().to(torch.int8).numpy()
    rewards = data.rewards.cpu().numpy()
    ends = np.arange(rewards.shape[1]) == rewards.shape[1] - 1
    slots = slates.shape[2]
    items = spaces.MultiDiscrete([num_items] * slots, dtype=slates.dtype.type)

    def episodes() -> Iterator[EpisodeBuffer]:
        for i in range(len(slates)):
            yield EpisodeBuffer(
                observations={"slate": slates[i], "clicks": clicks[i]},
                actions=slates[i, 1:],
                rewards=rewards[i],
                terminations=ends,
                truncations=np.zeros_like(ends),
            )

    folder.mkdir(parents=True)
    storage = MinariStorage.new(
        folder,
        observation_space=spaces.Dict({"slate": items, "clicks": spaces.MultiBinary(slots)}),
        action_space=items,
        data_format="hdf5",
    )
    storage.update_metadata(header)
    storage.update_episodes(episodes())


Episode = tuple[int, np.ndarray, np.ndarray]  # its number, slates and clicks [H+1, S]


def load(dataset_id: str) -> tuple[list[Episode], dict[str, Any], torch.Tensor | None]:
    """A dataset of `export`: its episodes, the metadata that were exported, and policy_id [N] where there was one.

    Raises:
        UserError: there is no such dataset, it cannot be read, or it is not of `export`; Minari or h5py is not
            installed.
    """
    where = f"minari:{dataset_id}"
    minari = _minari(where)
    from gymnasium import spaces
    from minari.storage import get_dataset_path

    try:
        dataset = minari.load_dataset(dataset_id)
        space, header = dataset.observation_space, dataset.storage.metadata
        for field in ("slate", "clicks"):
            if not isinstance(space, spaces.Dict) or field not in space.spaces:
                found = f"found {space}, expected one of slate and clicks as slaterl exports it"
                raise UserError(f"{where}: no {field} in its observation space; {found}")
        if "slaterl" not in header:
            raise UserError(f"{where}: no field slaterl in its metadata; expected a dataset that slaterl exported")
        exported = json.loads(header["slaterl"])
        episodes = [
            (int(episode.id), episode.observations["slate"], episode.observations["clicks"])
            for episode in dataset.iterate_episodes()
        ]
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{where}: no such dataset in {get_dataset_path()}") from error
    except Exception as error:  # h5py, json and Minari each have their own for a damaged dataset
        raise UserError(f"{where}: cannot be read ({first_line(error)})") from error
    policy_id = header.get("slaterl_policy_id")
    return episodes, exported, None if policy_id is None else torch.tensor(policy_id, dtype=torch.int16)


def fingerprint(dataset_id: str) -> str:
    """16 hex digits that change with any byte of a dataset's files.

    Raises:
        UserError: there is no such dataset; Minari or h5py is not installed.
    """
    where = f"minari:{dataset_id}"
    _minari(where)
    from minari.storage import get_dataset_path

    folder = get_dataset_path(dataset_id) / "data"
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        raise UserError(f"{where}: no such dataset in {get_dataset_path()}")
    lines = [f"{path.relative_to(folder)} {fingerprint_of(path)}" for path in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _minari(where: str) -> Any:
    for name in ("minari", "h5py"):  # Minari does without h5py until it opens a dataset
        optional(name, "minari", where)
    return import_module("minari")


def optional(module: str, extra: str, where: str) -> None:
    """Raise UserError unless a module that an extra brings can be imported."""
    try:
        import_module(module)
    except ImportError as error:
        raise UserError(f"{where}: needs the package {module}: pip install 'slaterl[{extra}]'") from error
