"""Decisions without I/O: no SQLAlchemy, threads, event loop or logging in here."""
