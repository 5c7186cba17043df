"""Endpoints for those who watch over queues: depths and dead letters."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from fastapi import Path, Query
from sqlalchemy.orm import Session

from sqla_jobs._core.options import problem_of
from sqla_jobs._core.states import JobState
from sqla_jobs._store.counts import AT_MOST, JobCount, counts
from sqla_jobs._store.dead import dead_letters
from sqla_jobs.http.api import Api, plain, without_secrets
from sqla_jobs.http.problems import refused_fields
from sqla_jobs.http.schemas import BIGINT, DeadLetters, Depth, JobRow
from sqla_jobs.http.schemas import Queues as QueueList

QueueName = Annotated[str, Path(max_length=200, description="Any text; quote a slash.")]
PAGE = 500


class Queues:
    """Counts are bounded, so that none of these reads a backlog."""

    def __init__(self, api: Api) -> None:
        self._api, self._root = api, api.tables.root
        add = partial(api.add, scopes=("admin",))
        add("GET", "/v1/queues", self.queues, model=QueueList)
        # A path: the name of a queue may hold a slash.
        one = "/v1/queues/{queue:path}"
        add("GET", f"{one}/depth", self.depth, model=Depth)
        add("GET", f"{one}/dead", self.dead, model=DeadLetters)

    async def queues(self) -> dict[str, Any]:
        """Return the queues that have jobs, with their depths."""
        found = await self._counts(None)
        names = sorted({one.queue for one in found})
        return {"queues": [_depth(name, found) for name in names]}

    async def depth(self, queue: QueueName) -> dict[str, Any]:
        """Return how many jobs of a queue are in each state."""
        check_queue(queue)
        return _depth(queue, await self._counts([queue]))

    async def dead(
        self,
        queue: QueueName,
        limit: Annotated[int, Query(ge=1, le=PAGE)] = 50,
        before_id: Annotated[int | None, Query(ge=1, le=BIGINT)] = None,
    ) -> dict[str, Any]:
        """Return the dead letters of a queue, those with the highest ids first."""
        check_queue(queue)

        def work(session: Session) -> list[dict[str, Any]]:
            found = dead_letters(
                session, self._root, queues=[queue], limit=limit, before_id=before_id
            )
            names = JobRow.model_fields
            rows = [plain({n: getattr(job, n) for n in names}) for job in found]
            return [without_secrets(self._api.tables, row) for row in rows]

        jobs = await self._api.gate.run(work)
        last = jobs[-1]["id"] if len(jobs) == limit else None
        return {"jobs": jobs, "next_before_id": last}

    async def _counts(self, queues: list[str] | None) -> list[JobCount]:
        read = partial(counts, job_class=self._root, queues=queues, at_most=AT_MOST)
        return await self._api.gate.run(read)


def check_queue(queue: str) -> None:
    """
    Refuse what cannot be the name of a queue.

    Raises:
        Refused: With 422.
    """
    if problem := problem_of("queue", queue):
        raise refused_fields({"queue": problem})


def _depth(queue: str, found: list[JobCount]) -> dict[str, Any]:
    mine = {one.state: one for one in found if one.queue == queue}
    numbers = {
        field: mine[state].count if state in mine else 0
        for field, state in _STATES.items()
    }
    capped = [field for field, state in _STATES.items() if _is_cut(mine.get(state))]
    return {"queue": queue, **numbers, "at_most": AT_MOST, "capped": capped}


def _is_cut(count: JobCount | None) -> bool:
    return count is not None and count.cut


_STATES = {
    "ready" if state is JobState.AVAILABLE else state.value: state for state in JobState
}
