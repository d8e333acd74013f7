"""The table of a sweep's jobs."""

from __future__ import annotations

from pathlib import Path

from slaterl.sweeps.records import Job
from slaterl.sweeps.table import jobs_table


def test_a_table_with_little_room_has_the_jobs_that_tell_most() -> None:
    states = ["finished", "failed", "finished", "running", "waiting", "running", "waiting"]
    found = [Job(Path(str(number)), state, {"status": state}) for number, state in enumerate(states)]

    def shown(rows: int | None) -> list[str]:
        table = jobs_table(found, rows)
        assert table.title == "7 jobs: 2 finished, 1 failed, 2 running, 2 waiting"
        return list(table.columns[0].cells)

    assert shown(None) == [str(number) for number in range(7)]
    assert shown(2) == ["3", "5"]
    assert shown(4) == ["1", "3", "4", "5"]
