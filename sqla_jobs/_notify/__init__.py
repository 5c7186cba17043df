"""Wake-ups from the database, per driver; a hint that runners can do without."""

from __future__ import annotations

from sqla_jobs._notify.base import Listener as Listener
from sqla_jobs._notify.base import ListenerTask as ListenerTask
from sqla_jobs._notify.base import ListenerThread as ListenerThread
from sqla_jobs._notify.direct import checked_url as checked_url
from sqla_jobs._notify.direct import direct_engine as direct_engine
from sqla_jobs._notify.listeners import listener_for as listener_for
from sqla_jobs._notify.urls import shown as shown
