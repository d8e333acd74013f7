"""Export trajectories as a Minari dataset, and read such a dataset back."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slaterl.data.formats.checks import require_package
from slaterl.data.formats.rows import Rows, rows_of_sessions
from slaterl.data.trajectories import Trajectories, check_ids, smallest_int
from slaterl.errors import UserError
from slaterl.runs.files import fingerprint_of_files, first_line

DESCRIPTION = (
    "Slate recommendation, written by slaterl. An observation is a slate and its clicks; reset returns observation 0. "
    "Action t is the slate of observation t + 1, and its reward is the number of clicks there. The horizon is part of "
    "the task: each episode ends with a termination, or with a truncation where a log was cut."
)


def export(data: Trajectories, metadata: dict[str, Any], dataset_id: str, num_items: int) -> Path:
    """Write a dataset for `minari.load_dataset(dataset_id)`. An error leaves nothing behind.

    An episode of H turns has observations {"slate": [H+1, S], "clicks": [H+1, S]}, actions [H, S] (the slates of
    frames 1..H) and rewards [H]. It ends with a termination, as in slaterl/TopicRec-v0, or with a truncation where the
    log was cut. policy_id is exported; latent actions and hidden state are not.

    Args:
        metadata: plain values, stored as JSON text in the dataset's metadata under `slaterl`.
        dataset_id: (namespace/)name-v(version), as in Minari. Datasets are stored in $MINARI_DATASETS_PATH, by default
            ~/.minari/datasets.
        num_items: size of the catalogue; item ids are 0..num_items - 1.

    Returns:
        The dataset's folder.

    Raises:
        UserError: the id is not valid or already exists; item ids are out of range, or there are no trajectories; the
            disk is full or the folder cannot be written; Minari or h5py is not installed.
    """
    where = f"minari:{dataset_id}"
    minari = _minari(where)
    from minari.dataset.minari_dataset import parse_dataset_id
    from minari.namespace import create_namespace, list_local_namespaces
    from minari.storage import get_dataset_path

    try:
        namespace = parse_dataset_id(dataset_id)[0]
    except (TypeError, ValueError) as error:
        expected = "expected (namespace/)name-v(version), with at least two characters in the namespace"
        raise UserError(f"{where}: not a dataset id; {expected}") from error
    check_ids(data.slates, num_items, where)
    try:
        root, target = get_dataset_path(), get_dataset_path(dataset_id)
        if target.exists():
            raise UserError(f"{where}: already exists in {root}; choose another name or version")
        with tempfile.TemporaryDirectory(prefix=".slaterl-", dir=root) as hidden:  # Minari lists no hidden folders
            partial = Path(hidden, "dataset")
            _reserve(Path(hidden, "room"), data)
            _write(partial / "data", data, num_items, _header(data, metadata, dataset_id, minari.__version__))
            if namespace is not None and namespace not in list_local_namespaces():
                create_namespace(namespace)
            partial.rename(target)
    except (OSError, RuntimeError) as error:  # h5py raises either
        raise UserError(f"{where}: cannot be written ({first_line(error)})") from error
    return target


def exported(dataset_id: str, checksum: str) -> Path | None:
    """Return the folder of the Minari dataset exported from the trajectories with this checksum; None if not exported.

    Return None, too, if a dataset of this name has other data or another origin, or cannot be read. `export` refuses
    to replace it.

    Raises:
        UserError: Minari or h5py is not installed.
    """
    minari = _minari(f"minari:{dataset_id}")
    from minari.storage import get_dataset_path

    try:
        header = minari.load_dataset(dataset_id).storage.metadata
        same = json.loads(header["slaterl"])["checksum"] == checksum
        return get_dataset_path(dataset_id) if same else None
    except Exception:  # h5py, json and Minari each raise their own exceptions for a damaged dataset
        return None


def _header(data: Trajectories, metadata: dict[str, Any], dataset_id: str, version: str) -> dict[str, Any]:
    header: dict[str, Any] = {"dataset_id": dataset_id, "minari_version": version, "description": DESCRIPTION}
    header["slaterl"] = json.dumps(metadata)
    if data.policy_id is not None:
        header["slaterl_policy_id"] = data.policy_id.tolist()
    return header


def _reserve(file: Path, data: Trajectories) -> None:
    """Raise OSError if the disk has no room for the dataset, by reserving the largest size it can have.

    Without this check, a write that fails inside HDF5 can end the process with a segmentation fault. HDF5 fills up its
    chunks and takes about 18 kB for the six columns of an episode.
    """
    frames = data.slates[0].numel() * 12  # slate, action and clicks take at most 4 + 4 + 1 bytes; the rest is rewards
    with open(file, "wb") as room:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(room.fileno(), 0, 2**20 + len(data) * (2 * frames + 24_000))
        except OSError as error:
            # any other error means that this file system cannot reserve space
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
    file.unlink()


def _write(folder: Path, data: Trajectories, num_items: int, header: dict[str, Any]) -> None:
    """Write all episodes through one open file.

    Minari's `create_dataset_from_buffers` would need buffers of all episodes in memory.
    """
    from gymnasium import spaces
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    slates = data.slates.cpu().to(smallest_int(num_items + 1)).numpy()  # the type must also hold num_items itself
    clicks = data.clicks.cpu().to(torch.int8).numpy()
    rewards = data.rewards.cpu().numpy()
    lengths = data.mask.sum(1).tolist()
    truncated = [False] * len(data) if data.truncated is None else data.truncated.tolist()
    slots = slates.shape[2]
    items = spaces.MultiDiscrete([num_items] * slots, dtype=slates.dtype.type)

    def episodes() -> Iterator[EpisodeBuffer]:
        for i, (length, cut) in enumerate(zip(lengths, truncated, strict=True)):
            ends = np.arange(length) == length - 1
            yield EpisodeBuffer(
                observations={"slate": slates[i, : length + 1], "clicks": clicks[i, : length + 1]},
                actions=slates[i, 1 : length + 1],
                rewards=rewards[i, :length],
                terminations=ends & (not cut),
                truncations=ends & cut,
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


def read(dataset_id: str, slate_size: int) -> Rows:
    """Read a dataset written by `export`, with its frame 0, policy_id and metadata.

    Raises:
        UserError: there is no such dataset, it cannot be read, or `export` did not write it; an episode has another
            shape; Minari or h5py is not installed.
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
                found = f"found {space}, expected slate and clicks, as slaterl exports them"
                raise UserError(f"{where}: no {field} in its observation space; {found}")
        if "slaterl" not in header:
            raise UserError(f"{where}: no field slaterl in its metadata; expected a dataset exported by slaterl")
        exported = json.loads(header["slaterl"])
        episodes = [
            (int(episode.id), episode.observations["slate"], episode.observations["clicks"])
            for episode in dataset.iterate_episodes()
        ]
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{where}: no such dataset in {get_dataset_path()}") from error
    except Exception as error:  # h5py, json and Minari raise their own errors for a damaged dataset
        raise UserError(f"{where}: cannot be read ({first_line(error)})") from error
    policy_id = header.get("slaterl_policy_id")
    return rows_of_sessions(
        where,
        episodes,
        slate_size,
        has_frame_0=True,
        policy_id=None if policy_id is None else torch.tensor(policy_id, dtype=torch.int16),
        exported=exported,
    )


def fingerprint(dataset_id: str) -> str:
    """Return 16 hex digits that change with any byte of a dataset's files.

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
    return fingerprint_of_files(folder, files)


def _minari(where: str) -> Any:
    for name in ("minari", "h5py"):  # Minari imports h5py only when it opens a dataset
        require_package(name, "minari", where)
    return import_module("minari")
