"""Who may call what: bearer tokens with scopes, compared in constant time."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256

from sqla_jobs._core.options import unknown
from sqla_jobs.errors import JobValueError

SCOPES = ("enqueue", "work", "admin")
"""What a token may be for."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: the digest of the token, and what it is for."""

    digest: bytes
    scopes: frozenset[str]


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of an application, as digests; none means that all may call."""

    callers: tuple[Caller, ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, given: Mapping[str, Iterable[str]] | None) -> Tokens:
        """
        Return the tokens of a mapping of secrets to scopes.

        Raises:
            JobValueError: If there is none in the mapping, a secret cannot be sent in a
                header, or a scope is unknown. The message does not tell the secret.
        """
        if given is not None and not given:
            raise JobValueError(
                "tokens is empty, so nobody could call; give one, or tokens=None to"
                " let everybody call"
            )
        found = []
        for number, (secret, scopes) in enumerate((given or {}).items(), 1):
            check_secret(number, secret)
            found.append(Caller(_digest(secret), _checked_scopes(number, scopes)))
        return cls(tuple(found))

    def find(self, header: str | None) -> Caller | None:
        """Return the caller of an ``Authorization`` header; None if it has no token."""
        scheme, _, secret = (header or "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        digest, found = _digest(secret.strip()), None
        # All of them, however early one fits: the time tells nothing.
        for caller in self.callers:
            if hmac.compare_digest(caller.digest, digest):
                found = caller
        return found


def read_tokens(text: str) -> dict[str, frozenset[str]]:
    """
    Return the tokens of a text, for `create_app`.

    Each is ``scope,scope=secret``; white space separates them, and what follows a
    ``#`` at the start of a line is a comment.

    Raises:
        JobValueError: If an entry is not of that form; the message does not tell it.
    """
    lines = (line for line in text.splitlines() if not line.lstrip().startswith("#"))
    tokens: dict[str, frozenset[str]] = {}
    for number, entry in enumerate(" ".join(lines).split(), 1):
        scopes, sign, secret = entry.partition("=")
        if not sign:
            raise JobValueError(
                f"token {number} is not of the form 'scope,scope=secret'"
            )
        check_secret(number, secret)
        if secret in tokens:
            raise JobValueError(f"token {number} is there twice; name its scopes once")
        tokens[secret] = _checked_scopes(number, scopes.split(","))
    return tokens


def check_secret(number: int, secret: object) -> None:
    """
    Raise JobValueError unless a header can carry the *number*-th secret.

    Raises:
        JobValueError: As said; the message does not tell the secret.
    """
    fine = isinstance(secret, str) and secret.isascii() and secret.isprintable()
    if not fine or not secret or " " in str(secret):
        raise JobValueError(
            f"token {number} must be printable ASCII characters without spaces, e.g. of"
            ' python -c "import secrets; print(secrets.token_urlsafe())"'
        )


def _checked_scopes(number: int, scopes: Iterable[str]) -> frozenset[str]:
    if isinstance(scopes, str):
        raise JobValueError(f"the scopes of token {number} must be a set of names")
    names = frozenset(scopes)
    for name in names:
        if name not in SCOPES:
            text = unknown("scope", str(name), SCOPES)
            listed = ", ".join(SCOPES)
            raise JobValueError(f"token {number}: {text}; scopes are {listed}")
    if not names:
        raise JobValueError(f"token {number} has no scope; name some of {SCOPES}")
    return names


def _digest(secret: str) -> bytes:
    return sha256(secret.encode(errors="surrogateescape")).digest()
