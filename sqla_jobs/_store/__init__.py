"""
The queue protocol: the only package that executes SQL.

Functions are sync-style, take a Session first, never commit and never sleep; async
callers use ``AsyncSession.run_sync``. They run on the session's connection, not through
the session, so that they neither flush the caller's pending objects nor meet its
query filters. ``now=None`` means the database's clock; a value is for tests.
"""
