"""The bodies of requests and answers, with examples for the OpenAPI document."""

from __future__ import annotations

import base64
import binascii
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
)

from sqla_jobs._core.options import RAW_KIND, problem_of
from sqla_jobs._core.payloads import check_json
from sqla_jobs.errors import PayloadError

BIGINT = 2**53 - 1  # what every JSON reader knows exactly
MIN_LEASE_MS = 3_000
MAX_LEASE_MS = 24 * 60 * 60 * 1_000
MAX_DELAY_MS = 10 * 365 * 24 * 60 * 60 * 1_000
MAX_LEASED = 500
INVALID_JSON = (
    "holds what JSON columns cannot: NUL, a lone surrogate, a number that is not"
    " finite, or more than 64 levels"
)


def _as_option(name: str) -> AfterValidator:
    """Return the check that the option *name* of the constructor has."""

    def check(value: str) -> str:
        if problem := problem_of(name, value):
            raise ValueError(problem)
        return value

    return AfterValidator(check)


def _storable(value: Any) -> Any:
    try:
        check_json(value)
    except PayloadError:
        # Its text would repeat a part of the value.
        raise ValueError(INVALID_JSON) from None
    return value


def _text_only(value: Any) -> Any:
    # A number would be taken for seconds since 1970.
    if value is not None and not isinstance(value, str):
        raise ValueError("must be a text, e.g. 2026-01-31T12:00:00Z")
    return value


def _bytes_of(value: str) -> str:
    try:
        base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("is not base64") from None
    return value


_Name = Field(strict=True, max_length=200)
Queue = Annotated[str, _Name, _as_option("queue")]
Channel = Annotated[str, _Name, _as_option("channel")]
Kind = Annotated[str, _Name, _as_option("kind")]
Key = Annotated[str, _Name, _as_option("unique_key")]
Json = Annotated[Any, AfterValidator(_storable)]
JsonObject = Annotated[dict[str, Any], AfterValidator(_storable)]
Time = Annotated[AwareDatetime, BeforeValidator(_text_only)]
Base64 = Annotated[str, Field(strict=True), AfterValidator(_bytes_of)]
Token = Annotated[StrictInt, Field(ge=0, le=BIGINT)]
LeaseMs = Annotated[StrictInt, Field(ge=MIN_LEASE_MS, le=MAX_LEASE_MS)]
DelayMs = Annotated[StrictInt, Field(ge=0, le=MAX_DELAY_MS)]


class Body(BaseModel):
    """The body of a request; a key that is not known is refused."""

    model_config = ConfigDict(extra="forbid")


def _example(**values: Any) -> ConfigDict:
    return ConfigDict(extra="forbid", json_schema_extra={"examples": [values]})


class EnqueueRequest(Body):
    """A job to enqueue; what is left out is the class's default."""

    model_config = _example(queue="mail", payload={"to": "a@example.org"})

    kind: Kind = Field(
        default=RAW_KIND, description="`raw` is done outside; other kinds are classes."
    )
    queue: Queue | None = Field(default=None, description="Default: the class's.")
    channel: Channel | None = None
    payload: JsonObject = Field(
        default_factory=dict, description="Of a class: its arguments, checked."
    )
    payload_bytes: Base64 | None = None
    priority: Annotated[StrictInt, Field(ge=-32768, le=32767)] | None = Field(
        default=None, description="Higher runs first."
    )
    max_attempts: Annotated[StrictInt, Field(ge=1, le=2**31 - 1)] | None = None
    run_at: Time | None = Field(default=None, description="Not before it.")
    delay_ms: DelayMs | None = Field(default=None, description="Instead of run_at.")
    ordered: StrictBool | None = Field(
        default=None, description="One at a time in its queue and channel, as sent."
    )
    unique_key: Key | None = Field(default=None, description="One live job per key.")
    on_conflict: Literal["raise", "skip", "replace", "return"] | None = Field(
        default=None, description="When a live job has the key: 409 (raise), or its id."
    )
    fingerprint: Key | None = None
    idempotency_key: Key | None = Field(
        default=None,
        description="A repeat in the same queue answers with the first job.",
    )
    idempotency_window_ms: Annotated[StrictInt, Field(ge=1, le=MAX_DELAY_MS)] = Field(
        default=24 * 60 * 60 * 1_000, description="How long; default a day."
    )
    tags: Annotated[list[str], AfterValidator(_storable)] | None = None


class Enqueued(BaseModel):
    """The job; *created* is false if it was there already."""

    job_id: int
    created: bool


class LeaseRequest(Body):
    """How many jobs of which queue, and for how long."""

    model_config = _example(queue="mail", limit=10, lease_ms=30_000)

    queue: Queue
    limit: Annotated[StrictInt, Field(ge=1, le=MAX_LEASED)] = Field(
        default=1, description="Take no more than you start now."
    )
    lease_ms: LeaseMs = Field(
        default=30_000, description="Unless the job has a lease of its own."
    )
    kinds: Annotated[list[Kind], Field(min_length=1, max_length=100)] = Field(
        default=[RAW_KIND],
        description="Only raw ones by default: others may have a runner.",
    )


class Leased(BaseModel):
    """A job that is the caller's until *leased_until*; *state* is its checkpoint."""

    id: int
    token: int
    kind: str
    queue: str
    channel: str
    payload: dict[str, Any]
    payload_bytes: str | None
    attempt: int
    max_attempts: int
    state: dict[str, Any]
    leased_until: datetime
    priority: int
    run_at: datetime
    created_at: datetime


class LeaseAnswer(BaseModel):
    """The jobs in the order in which they were claimed."""

    jobs: list[Leased]


class HolderRequest(Body):
    """The proof of the lease."""

    model_config = _example(token=1)

    token: Token = Field(description="As the lease gave it.")


class AckRequest(HolderRequest):
    """The job is done."""

    model_config = _example(token=1, result={"sent": 1})

    result: Json = Field(default=None, description="Any JSON, to keep in the row.")


class FailRequest(HolderRequest):
    """The attempt failed."""

    model_config = _example(token=1, reason="SMTP 451", retry_ms=5_000)

    reason: Annotated[str, Field(strict=True)]
    retry_ms: DelayMs | None = Field(
        default=None, description="Default: the job's backoff."
    )
    discard: StrictBool = Field(
        default=False, description="Make it a dead letter at once."
    )


class HeartbeatRequest(HolderRequest):
    """The lease is to go on."""

    model_config = _example(token=1, extend_ms=30_000)

    extend_ms: LeaseMs = Field(
        default=30_000, description="From now on; never shortens."
    )


class CheckpointRequest(HeartbeatRequest):
    """What the next attempt is to know, in place of what was saved before."""

    model_config = _example(token=1, state={"page": 7})

    state: JsonObject


class SnoozeRequest(HolderRequest):
    """Not now; the attempt is given back."""

    model_config = _example(token=1, delay_ms=60_000)

    delay_ms: DelayMs
    reason: Annotated[str, Field(strict=True)] | None = None


class Held(BaseModel):
    """The lease holds; a job whose cancel is requested should end."""

    leased_until: datetime
    cancel_requested: bool


class NewState(BaseModel):
    """What became of the job."""

    job_id: int
    state: str


class CancelRequest(Body):
    """Why the job is to end."""

    model_config = _example(reason="ordered twice")

    reason: Annotated[str, Field(strict=True)] = "cancelled on request"


class RequeueRequest(Body):
    """How the job is to begin again."""

    model_config = _example(keep_state=False)

    keep_state: StrictBool = Field(
        default=False, description="Whether the next attempt sees the saved checkpoint."
    )


class Cancelled(NewState):
    """A waiting job has ended; one that runs was asked to."""

    cancel_requested: bool


class JobStatus(BaseModel):
    """Where a job is in its life, without its data."""

    id: int
    kind: str
    queue: str
    state: str
    attempt: int
    max_attempts: int
    run_at: datetime
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    cancel_requested_at: datetime | None


class JobRow(JobStatus):
    """A job with its data."""

    channel: str
    priority: int
    payload: dict[str, Any]
    payload_bytes: str | None
    checkpoint: Any
    progress: Any
    result: Any
    reason: str | None
    last_error: str | None
    crashes: int
    snoozes: int
    leased_until: datetime | None
    unique_key: str | None
    fingerprint: str | None
    tags: list[str] | None


class AttemptRow(BaseModel):
    """An attempt that did not complete."""

    model_config = ConfigDict(from_attributes=True)

    number: int
    started_at: datetime | None
    finished_at: datetime
    outcome: str
    error: str | None


class JobDetails(JobRow):
    """A job with the attempts that did not complete, the oldest first."""

    attempts: list[AttemptRow]


class DeadLetters(BaseModel):
    """Discarded jobs, newest first; *next_before_id* asks for older ones."""

    jobs: list[JobRow]
    next_before_id: int | None


class Depth(BaseModel):
    """
    How many jobs of a queue are in each state, counted up to a bound.

    *ready* may be claimed now; *at_most* is the bound, *capped* names what reaches it.
    """

    queue: str
    ready: int
    scheduled: int
    running: int
    retryable: int
    held: int
    completed: int
    cancelled: int
    discarded: int
    at_most: int
    capped: list[str]


class Queues(BaseModel):
    """The queues that have jobs, by name."""

    queues: list[Depth]


class Health(BaseModel):
    """The answer to a probe; *reasons* say why the service is not ready."""

    status: Literal["ok", "unavailable"]
    reasons: list[str] = []


class Issue(BaseModel):
    """One thing that is wrong with a request: where, and what."""

    field: str
    problem: str


class Problem(BaseModel):
    """Why a request was refused; *state* is the job's, where that is the reason."""

    detail: str
    errors: list[Issue] = []
    state: str | None = None
    job_id: int | None = None
