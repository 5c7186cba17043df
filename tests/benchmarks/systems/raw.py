"""Bare loops over psycopg and asyncpg: what the database and Python allow."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import asyncpg
import psycopg

from tests.benchmarks.systems.program import (
    TEXT,
    WARM_UP,
    Facts,
    System,
    main,
)

BATCH = 500
TABLE = (
    "CREATE TABLE raw_jobs (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,"
    " queue text NOT NULL DEFAULT 'default', priority int NOT NULL DEFAULT 0,"
    " status text NOT NULL DEFAULT 'todo', args jsonb NOT NULL,"
    " run_at timestamptz NOT NULL DEFAULT now(), started_at timestamptz)"
)
INDEX = (
    "CREATE INDEX raw_claim ON raw_jobs (queue, priority DESC, id)"
    " WHERE status = 'todo'"
)
CLAIM = (
    "UPDATE raw_jobs SET status = 'doing', started_at = now() FROM (SELECT id FROM"
    " raw_jobs WHERE status = 'todo' AND queue = 'default' AND run_at <= now() ORDER BY"
    " priority DESC, id FOR UPDATE SKIP LOCKED LIMIT {}) AS due"
    " WHERE raw_jobs.id = due.id RETURNING raw_jobs.id, raw_jobs.args"
)
DELETE = "DELETE FROM raw_jobs WHERE id = "


def args_of(number: int) -> str:
    """Return the arguments of a job as JSON."""
    return json.dumps({"number": number, "text": TEXT})


class Raw(System):
    """Loops without a queue around them."""

    facts = Facts(
        packages=("psycopg", "asyncpg", "uvloop"),
        config=(
            f"no-op: asyncpg on uvloop, claims of {BATCH}, a task per job, DELETE of a"
            " batch beside the next one's handlers; effect: psycopg, claims of 100,"
            " then an INSERT and a DELETE in one transaction per job"
        ),
        pending="SELECT EXISTS (SELECT FROM raw_jobs WHERE run_at <= now())",
        stored="SELECT count(*) FROM raw_jobs",
    )

    def setup(self) -> None:
        """Make the table."""
        with psycopg.connect(self.options.dsn, autocommit=True) as connection:
            connection.execute(TABLE)
            connection.execute(INDEX)

    def fill(self) -> None:
        """Enqueue the jobs of a drain."""
        with psycopg.connect(self.options.dsn) as connection:
            self.copy(connection)

    def copy(self, connection: psycopg.Connection[Any]) -> None:
        """COPY all rows."""
        with connection.cursor().copy("COPY raw_jobs (args) FROM STDIN") as copy:
            for number in self.numbers:
                copy.write_row((args_of(number),))

    def unnest(self, connection: psycopg.Connection[Any]) -> None:
        """INSERT all rows in one statement."""
        rows = [args_of(number) for number in self.numbers]
        connection.execute(
            "INSERT INTO raw_jobs (args) SELECT unnest(%s::jsonb[])", (rows,)
        )

    def enqueue(self) -> Any:
        """Enqueue as told."""
        if self.options.how == "asyncpg":
            return self.enqueue_with_asyncpg()
        with psycopg.connect(self.options.dsn, autocommit=True) as connection:
            if self.options.how == "psycopg":
                self.insert_each(connection)
            else:
                write = {"copy": self.copy, "unnest": self.unnest}[self.options.how]
                with self.watch:
                    write(connection)
        return None

    def insert_each(self, connection: psycopg.Connection[Any]) -> None:
        """INSERT one row per transaction."""
        statement = "INSERT INTO raw_jobs (args) VALUES (%s)"
        for number in range(WARM_UP):
            connection.execute(statement, (args_of(number),))
        with self.watch:
            for number in self.numbers:
                connection.execute(statement, (args_of(number),))

    async def enqueue_with_asyncpg(self) -> None:
        """INSERT one row per transaction."""
        connection = await asyncpg.connect(self.options.dsn)
        statement = "INSERT INTO raw_jobs (args) VALUES ($1)"
        await self.one_by_one(
            lambda number: connection.execute(statement, args_of(number))
        )

    def work(self) -> Any:
        """Run jobs until killed."""
        if self.options.kind == "noop":
            return self.work_on_loop()
        self.write_each()
        return None

    def write_each(self) -> None:
        """Write one row per job in the transaction that deletes the job."""
        statement = "INSERT INTO effects (job) VALUES (%s)"
        with psycopg.connect(self.options.dsn, autocommit=True) as connection:
            while rows := connection.execute(CLAIM.format(100).encode()).fetchall():
                for id_, args in rows:
                    self.counter.hit()
                    with connection.transaction():
                        connection.execute(statement, (args["number"],))
                        connection.execute(DELETE + "%s", (id_,))

    async def work_on_loop(self) -> None:
        """Claim a batch while the one before is deleted, with a task per job."""
        claimer = await asyncpg.connect(self.options.dsn)
        deleter = await asyncpg.connect(self.options.dsn)
        claim, done = CLAIM.format(BATCH), None
        while rows := await claimer.fetch(claim):
            await asyncio.gather(*[asyncio.create_task(self.handle()) for _ in rows])
            if done is not None:
                await done
            ids = [row["id"] for row in rows]
            statement = DELETE + "ANY($1)"
            done = asyncio.create_task(deleter.execute(statement, ids))
        if done is not None:
            await done

    async def handle(self) -> None:
        """Count."""
        self.counter.hit()


if __name__ == "__main__":
    main(Raw)
