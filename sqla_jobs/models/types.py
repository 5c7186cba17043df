"""Column types of the job tables: stock types, so that migrations need no import."""

from __future__ import annotations

from sqlalchemy import JSON, DateTime, Interval, LargeBinary, Uuid
from sqlalchemy.dialects.postgresql import JSONB

JSON_VALUE = JSON(none_as_null=True).with_variant(
    JSONB(none_as_null=True), "postgresql"
)
"""A JSON value; Python's None is SQL NULL."""

# evaluates_none() leaves a column that nobody set out of the INSERT: a job has a dozen
# of these, and a NULL parameter for each would cost more than the job's own values.
TIME = DateTime(timezone=True).evaluates_none()
DURATION = Interval().evaluates_none()
BYTES = LargeBinary().evaluates_none()
UUID = Uuid().evaluates_none()
