"""Bare SQLAlchemy loops, without a queue: the base of what ours may cost."""

from __future__ import annotations

from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker

from tests.benchmarks.systems.program import TEXT, WARM_UP, Facts, System, main
from tests.benchmarks.systems.rows import Base, Effect, Plain


class Bare(System):
    """Adds and commits one mapped row at a time, in one thread."""

    facts = Facts(
        packages=("sqlalchemy", "psycopg"),
        config="one thread, one Session and one commit per row",
    )

    def setup(self) -> None:
        """Make the tables."""
        url = self.options.dsn.replace("://", "+psycopg://", 1)
        self.maker = sessionmaker(create_engine(url))
        Base.metadata.create_all(self.maker.kw["bind"])

    def enqueue(self) -> None:
        """Add and commit rows as told."""
        self.setup()
        send = self.add_effect if self.options.how == "effect" else self.add_plain
        for number in range(WARM_UP):
            send(-number)
        with self.watch:
            for number in self.numbers:
                send(number)

    def add_effect(self, number: int) -> None:
        """Add what a handler adds."""
        with self.maker() as session:
            session.add(Effect(job=number))
            session.commit()

    def add_plain(self, number: int) -> None:
        """Add a row with three columns."""
        with self.maker() as session:
            session.add(Plain(kind="noop", payload=f"{number}{TEXT}"))
            session.commit()


if __name__ == "__main__":
    main(Bare)
