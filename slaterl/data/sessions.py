"""The sessions of a log: their own ids, in the order of the trajectories."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slaterl.errors import UserError
from slaterl.runs.files import read_json, write_json

FILE = "sessions.json"  # next to the trajectories


@dataclass(frozen=True)
class Sessions:
    """The ids of a log's sessions, in rising order. Trajectories have the same order.

    Attributes:
        ids: the log's own ids, whole numbers or text.
        parts: the number of trajectories of each id; None if the log was not cut, so that each id has one.
    """

    ids: Sequence[int] | Sequence[str]
    parts: Sequence[int] | None = None

    def __len__(self) -> int:
        """Count the trajectories."""
        return len(self.ids) if self.parts is None else sum(self.parts)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with any id and any number of parts."""
        return hashlib.sha256(json.dumps([list(self.ids), self.parts]).encode()).hexdigest()[:16]

    def id_and_part(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the place in `ids` of each trajectory, [N], and its part of the session, 1, 2, ...; None if uncut."""
        place = np.arange(len(self.ids))
        if self.parts is None:
            return place, None
        counts = np.asarray(self.parts)
        place = np.repeat(place, counts)
        return place, np.arange(1, len(place) + 1) - np.repeat(np.cumsum(counts) - counts, counts)

    def save(self, folder: Path) -> None:
        """Write `sessions.json`, whole or not at all."""
        parts = None if self.parts is None else list(self.parts)
        write_json(folder / FILE, {"fingerprint": self.fingerprint, "ids": list(self.ids), "parts": parts}, indent=None)

    @classmethod
    def load(cls, folder: Path, fingerprint: str) -> Sessions:
        """Read `sessions.json` of a dataset.

        Args:
            fingerprint: the entry `sessions` of the dataset's metadata, which its checksum covers.

        Raises:
            UserError: the file is missing or damaged, or belongs to another dataset.
        """
        content = read_json(folder / FILE)
        try:
            found = cls(content["ids"], content["parts"])
            same = found.fingerprint == fingerprint
        except (KeyError, TypeError, ValueError):
            same = False
        if not same:
            raise UserError(f"{folder / FILE}: not the sessions of these trajectories; the file was altered or damaged")
        return found
