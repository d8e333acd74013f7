"""The items of a log: their own ids, which stand for 0..N-1, and how often each was shown and clicked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slaterl.errors import UserError
from slaterl.runs.files import read_json, write_json

FILE = "items.json"  # next to the trajectories


@dataclass(frozen=True)
class Vocabulary:
    """N items in the order of their numbers 0..N-1.

    Attributes:
        ids: the log's own ids, whole numbers or text, in rising order.
        shown: impressions of each item.
        clicked: clicks on each item.
    """

    ids: Sequence[int] | Sequence[str]
    shown: Sequence[int]
    clicked: Sequence[int]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with any id. Equal fingerprints mean that numbers stand for the same items."""
        return hashlib.sha256(json.dumps(list(self.ids)).encode()).hexdigest()[:16]

    def save(self, folder: Path) -> None:
        """Write `items.json`, whole or not at all."""
        columns = {"ids": list(self.ids), "shown": list(self.shown), "clicked": list(self.clicked)}
        write_json(folder / FILE, {"fingerprint": self.fingerprint, **columns}, indent=None)

    @classmethod
    def load(cls, folder: Path, fingerprint: str) -> Vocabulary:
        """Read `items.json` of a dataset.

        Args:
            fingerprint: the entry `items` of the dataset's metadata.

        Raises:
            UserError: the file is missing or damaged, or belongs to another dataset.
        """
        content = read_json(folder / FILE)
        try:
            found = cls(content["ids"], content["shown"], content["clicked"])
            same = found.fingerprint == fingerprint and len(found.ids) == len(found.shown) == len(found.clicked)
        except (KeyError, TypeError, ValueError):
            same = False
        if not same:
            raise UserError(f"{folder / FILE}: not the items of these trajectories; the file was altered or damaged")
        return found

    def most_shown(self, count: int) -> list[dict[str, int | str]]:
        """Return the most shown items, each with its id, impressions and clicks; the first of equals come first."""
        order = sorted(range(len(self)), key=lambda item: -self.shown[item])[:count]
        return [{"id": self.ids[i], "shown": self.shown[i], "clicked": self.clicked[i]} for i in order]


def item_ids(folder: Path, fingerprint: str) -> list[int] | list[str] | None:
    """Return the log's own ids of the items of a dataset; None if it is not from a log.

    Args:
        folder: of the dataset; fingerprint: see `Vocabulary.load`.
    """
    return list(Vocabulary.load(folder, fingerprint).ids) if (folder / FILE).is_file() else None  # type: ignore[return-value]
