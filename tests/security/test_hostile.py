"""Any text is stored as it is or refused with a reason; it is never SQL."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from sqlalchemy import Engine, create_engine, func, select
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker
from sqlalchemy.schema import CreateSchema, DropSchema

from sqla_jobs import (
    Arg,
    Context,
    JobMixin,
    JobValueError,
    Prefix,
    Runner,
    arg,
    check,
    claim,
    counts,
)
from sqla_jobs.cli.commands import command
from sqla_jobs.errors import JobDefinitionError
from sqla_jobs.http import create_app
from tests.integration.http.kit import Client, serving
from tests.security.app import Job, Login, Note
from tests.security.hostile import ASKED, NASTY, STORED, Use, nameable, storable, texts

EXAMPLES = settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
WITNESS = select(func.count()).where(Note.text == "witness")


def used(session: Session, use: Use, text: str) -> Any:
    """Use *text*; return what was stored and what should be, None if refused."""
    found, nested = None, session.begin_nested()
    try:
        found = use(session, text)
    except JobValueError as exc:
        said = str(exc)
    else:
        said = "nothing"
    assert 0 < len(said) < 4_000
    nested.rollback()
    # The transaction goes on, and the job of somebody else is there.
    assert session.scalar(WITNESS) == 1
    return found


@pytest.fixture
def witnessed(maker: sessionmaker[Session]) -> Iterator[Session]:
    """Yield a session with a job that nothing may harm; nothing is committed."""
    with maker() as session:
        session.add(Note(text="witness", queue="witness"))
        session.flush()
        yield session


@pytest.mark.parametrize("name", STORED)
def test_text_is_stored_exactly_or_refused(witnessed: Session, name: str) -> None:
    """Queues, keys, payloads, results are read back as given, or are refused."""
    kept = []

    @EXAMPLES
    @given(texts)
    def check(text: str) -> None:
        found = used(witnessed, STORED[name], text)
        if found is not None:
            assert found[0] == found[1]
            kept.append(text)

    check()
    for text in NASTY:
        found = used(witnessed, STORED[name], text)
        if found is not None:
            assert found[0] == found[1]
            kept.append(text)
    if name not in {"kind", "request_cancel"}:  # these keep no text
        assert {text for text in NASTY if nameable(text)} <= set(kept)


@pytest.mark.parametrize("name", ASKED)
def test_text_to_look_for_is_used_or_refused(witnessed: Session, name: str) -> None:
    """Filters and options never end in a driver's error."""

    @EXAMPLES
    @given(texts)
    def check(text: str) -> None:
        used(witnessed, ASKED[name], text)

    check()
    for text in NASTY:
        used(witnessed, ASKED[name], text)


def test_refusals_are_for_what_cannot_be_stored(witnessed: Session) -> None:
    """A queue may be called anything that fits: the checks refuse no more."""
    for text in NASTY:
        assert (used(witnessed, STORED["queue"], text) is not None) is nameable(text)
        assert (used(witnessed, STORED["argument"], text) is not None) is storable(text)


def test_runner_of_any_name_and_queue(maker: sessionmaker[Session]) -> None:
    """A runner registers under its name and its queues, or is not made."""
    good = [text for text in NASTY if nameable(text)]
    for text in {*NASTY} - {*good}:
        with pytest.raises(JobValueError):
            Runner(maker, Job, name=text or "\0")
        with pytest.raises(JobValueError):
            Runner(maker, Job, queues=[f"\0{text}"])
    with maker.begin() as session:
        session.add_all([Login(password="x", queue=text) for text in good])
    for text in good[::9]:
        subscribed: Any = [*good, *((one, one) for one in good), *map(Prefix, good)]
        Runner(maker, Job, name=text, queues=subscribed, listen=False).run_until_idle()
    with maker() as session:
        done = select(Job.queue).where(Job.state == "completed")
        assert sorted(session.scalars(done)) == sorted(good)
    for text in ("\0", "\ud800", "x" * 201):
        with pytest.raises(JobValueError):
            Prefix(text)


NAMES = [
    'it\'s "quoted"; -- UPPER /*',
    "\\dot.ted:name $1 {} \U0001f600\u202egnp",
    "x'); DROP TABLE sec_jobs; --",
]
"""Names of tables and schemas that are possible."""
IMPOSSIBLE = ["", "per%cent", "\0", "\ud800", "x" * 500, "\u00e9" * 40]


def application(table: str) -> Any:
    """Return a job class on a table of that name."""

    class Base(DeclarativeBase):
        pass

    class Root(JobMixin, Base):
        __tablename__ = table

    class Hello(Root, kind='it\'s; "hello" %(x)s'):
        text: Arg[str] = arg(default="")

        def run(self, ctx: Context) -> None:
            ctx.checkpoint(seen=self.text)

    return Hello


def test_tables_and_schemas_of_any_name(dsn: str, engine: Engine) -> None:
    """Jobs run in tables, and in tenants' schemas, however they are called."""
    for number, name in enumerate(NAMES):
        kind = application(NAMES[number - 1])
        root = kind.__jobs__.root
        own = create_engine(
            dsn, execution_options={"schema_translate_map": {None: name}}
        )
        with engine.begin() as connection:
            connection.execute(CreateSchema(name))
        try:
            root.metadata.create_all(own)
            check(own, root)
            with Session(own) as session:
                session.add(kind(text=name, queue=name))
                session.commit()
                Runner(sessionmaker(own), root).run_until_idle()
                (done,) = session.scalars(select(root)).all()
                assert (done.state, done.checkpoint) == ("completed", {"seen": name})
                (count,) = [one for one in counts(session, root) if one.count]
                assert (count.queue, count.count) == (name, 1)
                assert claim(session, root) == []
        finally:
            with engine.begin() as connection:
                connection.execute(DropSchema(name, cascade=True))
            own.dispose()


@pytest.mark.parametrize("name", IMPOSSIBLE, ids=ascii)
def test_impossible_table_is_refused(name: str) -> None:
    """A name that no table can have is an error of the class, in its own words."""
    with pytest.raises(JobDefinitionError, match="__tablename__"):
        application(name)


@pytest.fixture(scope="module")
def service(tables: Engine) -> Iterator[Client]:
    """Yield a client of the HTTP interface, open to all."""
    with serving(create_app(sessionmaker(tables), Job)) as client:
        yield client


FIELDS = ["queue", "channel", "unique_key", "fingerprint", "idempotency_key"]


def test_bodies_over_http(service: Client, maker: sessionmaker[Session]) -> None:
    """What is answered with 201 is stored exactly; all else is the caller's error."""
    stored = []

    @EXAMPLES
    @given(texts, texts)
    def check(one: str, other: str) -> None:
        bodies: list[dict[str, Any]] = [{name: one} for name in FIELDS]
        bodies += [{"tags": [one, other]}, {"payload": {"text": one}, "kind": "note"}]
        bodies += [{"payload": {one: other}}, {"kind": one}]
        for body in bodies:
            answer = service.post("/v1/jobs", **{"queue": "q", **body})
            assert answer.status in {200, 201, 409, 413, 422}, answer.text
            if answer.status != 201:
                continue
            found = service.get(f"/v1/jobs/{answer.json['job_id']}").json
            body.pop("idempotency_key", None)
            assert {name: found[name] for name in body} == body
            stored.append(one)

    check()
    assert len(set(stored)) > 3


def test_paths_and_headers_over_http(
    service: Client, maker: sessionmaker[Session]
) -> None:
    """A path, a query or a header of any bytes is answered below 500."""

    @EXAMPLES
    @given(texts)
    def check(text: str) -> None:
        part = quote(text[:300].encode(errors="surrogatepass"), safe="")
        for path in (
            *(f"/v1/queues/{part}/depth", f"/v1/queues/{part}/dead", f"/{part}"),
            *(f"/v1/jobs/{part}", f"/v1/queues/q/dead?limit={part}&before_id={part}"),
        ):
            assert service.get(path).status < 500
        header = "".join(c for c in text[:300] if c.isprintable())
        header = header.encode("latin-1", errors="replace").decode("latin-1")
        for name in ("Authorization", "Content-Type", "Host"):
            sent = {name: f"Bearer {header}" if name == "Authorization" else header}
            answer = service.send("POST", "/v1/jobs", b'{"queue": "q"}', headers=sent)
            assert answer.status < 500, (name, header)

    check()


@pytest.fixture
def cli(dsn: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return a function that runs a command in this process."""
    monkeypatch.setenv("APP_DSN", dsn)
    monkeypatch.setenv("SQLA_JOBS_RUNNER", "tests.security.app:make_runner")
    monkeypatch.setenv("SQLA_JOBS_APP_DIR", str(Path(__file__).parents[2]))
    return lambda *args: CliRunner().invoke(command, [*args])


COMMANDS: list[Callable[[str], list[str]]] = [
    lambda t: ["list", "-q", t, "-k", t],
    lambda t: ["show", t],
    lambda t: ["enqueue", "note", "--queue", t, "--json", json.dumps({"text": t})],
    lambda t: ["enqueue", "raw", "--channel", t, "--tag", t, "--json", t],
    lambda t: ["enqueue", t, "--run-at", t],
    lambda t: ["cancel", "--fingerprint", t, "--yes"],
    lambda t: ["retry", "--all", "-q", t, "--yes"],
    lambda t: ["dead", "-q", t],
    lambda t: ["queue", "pause", t],
    lambda t: ["wait", t],
    lambda t: [t],
]


def test_arguments_of_commands(
    cli: Callable[..., Any], maker: sessionmaker[Session]
) -> None:
    """Each command ends with a status and a text, never with a traceback."""
    statuses = set()
    some = [text for text in NASTY if len(text) < 300][::11]
    for text in some:
        for number, made in enumerate(COMMANDS):
            done = cli(*made(text))
            assert done.exception is None or isinstance(done.exception, SystemExit), (
                made(text),
                done.exc_info,
            )
            assert done.exit_code in {0, 1, 2}, number
            statuses.add(done.exit_code)
    assert statuses == {0, 1, 2}
