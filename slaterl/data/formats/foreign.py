"""Ways in: trajectories from files that slaterl did not write.

Each reader brings its source into one row for each slate that was shown (`_Rows`); what the rows hold is checked and
made into frames in one place. R rows, S slots, H turns, N sessions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from slaterl.data.formats import minari
from slaterl.data.trajectories import Trajectories
from slaterl.errors import UserError
from slaterl.runs.files import first_line

MADE = "the environment's first slate without clicks, made on import: the source begins with the first action's slate"
RECORDED = "as in the source, which holds what the user saw before the first action"
LOG_FIELDS = ("session_id", "turn", "slate", "clicks")
SEPARATORS = str.maketrans(dict.fromkeys("[](),;", " "))


def read(
    path: str, *, num_items: int, slate_size: int, episode_length: int, first_slate: Tensor
) -> tuple[Trajectories, dict[str, Any]]:
    """Trajectories of another format, and where they come from.

    - `minari:<dataset id>`: a dataset of `minari.export`, with its frame 0 and its policy_id.
    - `.npz`, as D4RL: `slates` and `clicks` [N*H, S], `episode_ids` and `timesteps` [N*H].
    - `.pt` of the published code: {session: {"slate": [H, S], "clicks": [H, S]}}; it begins after the first action.
      With H + 1 rows in every session, row 0 is the frame of reset.
    - `.parquet`, `.csv`: `session_id`, `turn`, `slate` and `clicks`, a row a turn. Slate and clicks are lists in
      Parquet, in CSV text such as "[3, 14, 15]" or "3 14 15". Other columns are ignored.

    Sessions keep the order in which they first appear; their rows may be interleaved. The turns of a session count up
    by one from any number. Messages count rows from 0, the first one after a header.

    Args:
        first_slate: [S] what reset shows, TopicRec.first_slate: frame 0 of sources that have none. Their own first
            slate cannot stand there: it is the first action, which no belief may have seen.

    Returns:
        slates and clicks [N, H+1, S] in their smallest types, and plain values: `format`, `source` (the file's name
        without its folder), `frame_0` (what it is) and, of Minari, `exported` (the metadata that were exported).

    Raises:
        UserError: the source is missing, damaged or empty; a field is missing; a slate is not of S items, or not of
            the shape of its clicks; an item id is not one of 0..num_items - 1, or a click not 0 or 1; turns are
            missing, doubled or out of order; a session is not H turns long; a package of an extra is not installed.
    """
    assert first_slate.shape == (slate_size,), "first_slate: expected the slate of TopicRec.first_slate"
    file, exported, policy_id = Path(path).expanduser(), None, None
    kind = "minari" if path.startswith("minari:") else file.suffix.lower().removeprefix(".")
    if kind == "minari":
        episodes, exported, policy_id = minari.load(path.removeprefix("minari:"))
        rows = _rows_of(path, episodes, slate_size)
    elif kind not in READERS:
        raise UserError(f"{path}: expected minari:<dataset id>, or a file .npz, .pt, .parquet or .csv")
    elif not file.exists():
        raise UserError(f"{path}: no such file")
    else:
        rows = READERS[kind](file, slate_size)

    accepted = {"minari": [episode_length + 1], "pt": [episode_length, episode_length + 1]}
    slates, clicks = _sessions(rows, num_items, accepted.get(kind, [episode_length]))
    recorded = slates.shape[1] == episode_length + 1
    if not recorded:
        slates = torch.cat([first_slate.cpu().to(slates.dtype).expand(len(slates), 1, -1), slates], dim=1)
        clicks = torch.cat([torch.zeros_like(clicks[:, :1]), clicks], dim=1)
    data = Trajectories(slates, clicks, policy_id=policy_id).compact(num_items)
    metadata = {"format": kind, "source": path.removeprefix("minari:") if kind == "minari" else file.name}
    metadata |= {"frame_0": RECORDED if recorded else MADE}
    return data, metadata if exported is None else metadata | {"exported": exported}


@dataclass
class _Rows:
    """What a source holds: a row for each slate, in the source's order.

    Attributes:
        where: the source, for messages; `fields`: what it calls session, turn, slate and clicks.
        sessions, turns: [R], as the source has them; `slates`, `clicks`: [R, S], any type.
        numbered: whether the source has rows that a user could count.
    """

    where: str
    fields: tuple[str, str, str, str]
    sessions: np.ndarray
    turns: np.ndarray
    slates: np.ndarray
    clicks: np.ndarray
    numbered: bool = True

    def place(self, row: int) -> str:
        place = _place(self.sessions, self.turns, row)
        return f"{place} (row {row})" if self.numbered else place


def _place(sessions: np.ndarray, turns: np.ndarray, row: int) -> str:
    return f"session {sessions[row]}, turn {turns[row]}"


def _sessions(rows: _Rows, num_items: int, lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Check all values; slates and clicks by session, [N, L, S] each, where L is one of `lengths`."""
    session, turn, slate, clicks = rows.fields
    if len(rows.slates) == 0:
        raise UserError(f"{rows.where}: {slate}: holds no trajectories")
    try:
        codes, names = pd.factorize(rows.sessions)  # numbered in the order of first appearance
    except TypeError as error:
        raise UserError(f"{rows.where}: {session}: expected numbers or names ({first_line(error)})") from error
    if (codes < 0).any():
        raise UserError(f"{rows.where}: {session} of row {_first(codes < 0)[0]}: empty")
    _check_numbers(rows, turn, rows.turns, low=-(2**53), high=2**53, expected="a whole number")
    rows.turns = rows.turns.astype(np.int64)
    _check_numbers(rows, slate, rows.slates, low=0, high=num_items - 1, expected=f"item ids 0..{num_items - 1}")
    _check_numbers(rows, clicks, rows.clicks, low=0, high=1, expected="0 or 1", kinds="biuf")

    order = np.argsort(codes, kind="stable")
    turns, codes = rows.turns[order], codes[order]
    wrong = (np.diff(turns) != 1) & (np.diff(codes) == 0)
    if wrong.any():
        (i,) = _first(wrong)
        all_turns, expected = turns[codes == codes[i]], turns[i] + 1
        doubled = np.count_nonzero(all_turns == turns[i + 1]) > 1
        what = "doubled" if doubled else "out of order" if expected in all_turns else "turns are missing before it"
        place = rows.place(order[i + 1])
        raise UserError(f"{rows.where}: {turn} of {place}: {what}, expected {expected} after {turns[i]}")
    counts = np.bincount(codes)
    wrong = ~np.isin(counts, lengths)
    if wrong.any():
        (i,) = _first(wrong)
        accepted = " or ".join(map(str, lengths))
        raise UserError(f"{rows.where}: {turn} of session {names[i]}: found {counts[i]} turns, expected {accepted}")
    if (counts != counts[0]).any():
        (i,) = _first(counts != counts[0])
        found = f"found {counts[i]} turns, where session {names[0]} has {counts[0]}"
        raise UserError(f"{rows.where}: {turn} of session {names[i]}: {found}; expected as many in all")
    shape = (len(counts), counts[0], -1)
    largest = np.int32 if num_items <= 2**31 else np.int64
    return (
        torch.from_numpy(rows.slates.astype(largest)[order].reshape(shape)),
        torch.from_numpy(rows.clicks.astype(np.uint8)[order].reshape(shape)),
    )


def _check_numbers(
    rows: _Rows, field: str, values: np.ndarray, *, low: int, high: int, expected: str, kinds: str = "iuf"
) -> None:
    """Raise UserError at the first of [R, ...] values that is not a whole number from low to high."""
    if values.dtype.kind not in kinds:
        raise UserError(f"{rows.where}: {field}: found {values.dtype}, expected {expected}")
    wrong = (values < low) | (values > high)
    if values.dtype.kind == "f":
        wrong |= values != np.floor(values)  # NaN, too
    if wrong.any():
        place = _first(wrong)
        raise UserError(
            f"{rows.where}: {field} of {rows.place(place[0])}: found {values[place].item()}, expected {expected}"
        )


def _first(mask: np.ndarray) -> tuple[int, ...]:
    """The index of the first True."""
    return tuple(int(i) for i in np.unravel_index(mask.argmax(), mask.shape))


def _npz(file: Path, slate_size: int) -> _Rows:
    fields = ("episode_ids", "timesteps", "slates", "clicks")
    with _reading(file):
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise UserError(f"{file}: one array, expected an .npz of several")
        with archive:
            _check_fields(file, archive.files, fields)
            sessions, turns, slates, clicks = (archive[name] for name in fields)
    if slates.ndim != 2 or slates.shape[1] != slate_size:
        raise UserError(f"{file}: slates: found {list(slates.shape)}, expected [turns of all episodes, {slate_size}]")
    for name, column, shape in (
        ("clicks", clicks, slates.shape),
        ("episode_ids", sessions, slates.shape[:1]),
        ("timesteps", turns, slates.shape[:1]),
    ):
        if column.shape != shape:
            raise UserError(f"{file}: {name}: found {list(column.shape)}, expected {list(shape)} as the slates have it")
    return _Rows(str(file), fields, sessions, turns, slates, clicks)


def _pt(file: Path, slate_size: int) -> _Rows:
    with _reading(file):
        found = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(found, dict):
        raise UserError(f"{file}: found {type(found).__name__}, expected a dict of sessions")

    def sessions() -> Iterator[tuple[Any, np.ndarray, np.ndarray]]:
        for name, session in found.items():
            if not isinstance(session, dict):
                raise UserError(f"{file}: session {name}: found {type(session).__name__}, expected a dict")
            _check_fields(f"{file}: session {name}", session, ("slate", "clicks"))
            for field in ("slate", "clicks"):
                if not isinstance(session[field], Tensor):
                    kind = type(session[field]).__name__
                    raise UserError(f"{file}: {field} of session {name}: found {kind}, expected a tensor")
            slate, clicks = (session[field].detach() for field in ("slate", "clicks"))
            # NumPy has no bfloat16
            yield name, *((t.double() if t.is_floating_point() else t).numpy() for t in (slate, clicks))

    return _rows_of(str(file), sessions(), slate_size)


def _rows_of(where: str, episodes: Iterable[tuple[Any, np.ndarray, np.ndarray]], slate_size: int) -> _Rows:
    """Rows of sources that hold a session in one piece: (name, slates [L, S], clicks [L, S])."""
    names, all_slates, all_clicks = [], [], []
    for name, slates, clicks in episodes:
        if slates.ndim != 2 or slates.shape[1] != slate_size or len(slates) == 0:
            found = f"found {list(slates.shape)}, expected [turns, {slate_size}]"
            raise UserError(f"{where}: slate of session {name}: {found}")
        if clicks.shape != slates.shape:
            found = f"found {list(clicks.shape)}, expected {list(slates.shape)} as the slate has it"
            raise UserError(f"{where}: clicks of session {name}: {found}")
        names.append(name)
        all_slates.append(slates)
        all_clicks.append(clicks)
    if not names:
        raise UserError(f"{where}: holds no trajectories")
    lengths = [len(slates) for slates in all_slates]
    sessions = np.empty(len(names), dtype=object)
    sessions[:] = names
    turns = np.concatenate([np.arange(length) for length in lengths])
    slates, clicks = np.concatenate(all_slates), np.concatenate(all_clicks)
    return _Rows(where, LOG_FIELDS, np.repeat(sessions, lengths), turns, slates, clicks, numbered=False)


def _parquet(file: Path, slate_size: int) -> _Rows:
    minari.optional("pyarrow", "parquet", str(file))
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    with _reading(file), pq.ParquetFile(file) as source:
        _check_fields(file, source.schema_arrow.names, LOG_FIELDS)
        table = source.read(columns=list(LOG_FIELDS))
        sessions, turns = table["session_id"].to_pandas().to_numpy(), table["turn"].to_numpy()

    def lists(field: str) -> np.ndarray:
        """[R, S] of a column of lists."""
        column, kind = table[field], table[field].type
        is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        if not is_list or not (pa.types.is_primitive(kind.value_type) and not pa.types.is_temporal(kind.value_type)):
            raise UserError(f"{file}: {field}: found the type {kind}, expected lists of numbers")
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
        _check_lengths(file, field, lengths, slate_size, sessions, turns)
        values = pc.list_flatten(column)
        if pa.types.is_boolean(kind.value_type):
            values = values.cast(pa.int8())  # whose empty places become NaN
        return values.to_numpy().reshape(-1, slate_size)

    return _Rows(str(file), LOG_FIELDS, sessions, turns, lists("slate"), lists("clicks"))


def _csv(file: Path, slate_size: int) -> _Rows:
    with _reading(file):
        # everything as text: the session 007 is not the session 7
        table = pd.read_csv(file, dtype=str, keep_default_na=False, na_values=[""], encoding="utf-8-sig")
    _check_fields(file, table.columns, LOG_FIELDS)
    if not isinstance(table.index, pd.RangeIndex):
        raise UserError(f"{file}: more values in a row than columns; lists with commas need quotes around them")
    sessions, turns = (table[name].to_numpy(dtype=object) for name in ("session_id", "turn"))
    numbers = pd.to_numeric(table["turn"], errors="coerce").to_numpy(dtype=np.float64)
    if np.isnan(numbers).any():
        (row,) = _first(np.isnan(numbers))
        found = f"found {turns[row]!r}, expected a whole number"
        raise UserError(f"{file}: turn of session {sessions[row]} (row {row}): {found}")

    def lists(field: str) -> np.ndarray:
        """[R, S] of a column of text, part by part: as Python objects the numbers take ten times the room."""
        texts, parts = table[field].fillna("").tolist(), []
        for start in range(0, len(texts), 10_000):
            part = [text.translate(SEPARATORS).split() for text in texts[start : start + 10_000]]
            lengths = np.fromiter(map(len, part), np.int64, len(part))
            _check_lengths(file, field, lengths, slate_size, sessions, turns, start)
            try:
                parts.append(np.array(part, dtype=np.float64))
            except ValueError as error:
                row = start + next((i for i, words in enumerate(part) if not all(map(_is_number, words))), 0)
                place, found = f"{_place(sessions, turns, row)} (row {row})", f"found {texts[row]!r}, expected numbers"
                raise UserError(f"{file}: {field} of {place}: {found}") from error
        return np.concatenate(parts) if parts else np.empty((0, slate_size))

    return _Rows(str(file), LOG_FIELDS, sessions, numbers, lists("slate"), lists("clicks"))


def _is_number(word: str) -> bool:
    try:
        return float(word) is not None
    except ValueError:
        return False


READERS = {"npz": _npz, "pt": _pt, "parquet": _parquet, "csv": _csv}


def _check_fields(where: Path | str, found: Iterable[str], expected: Iterable[str]) -> None:
    missing = [name for name in expected if name not in found]
    if missing:
        raise UserError(f"{where}: no {' and no '.join(missing)}; found {', '.join(map(str, found)) or 'nothing'}")


def _check_lengths(
    file: Path,
    field: str,
    lengths: np.ndarray,
    slate_size: int,
    sessions: np.ndarray,
    turns: np.ndarray,
    start: int = 0,
) -> None:
    """Raise UserError at the first row, counted from `start`, whose list is not of slate_size values."""
    wrong = lengths != slate_size
    if wrong.any():
        (i,) = _first(wrong)
        place = f"{_place(sessions, turns, start + i)} (row {start + i})"
        raise UserError(f"{file}: {field} of {place}: found {lengths[i]} values, expected {slate_size}")


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # each library has its own for a damaged file
        raise UserError(f"{file}: cannot be read ({first_line(error)})") from error
