"""Bytes under a URI: read, ranged reads, publish whole, create if absent. See `store.py`; the addresses allowed are in `uris.py`."""

from stagecoach.storage.backends import ObjectInfo
from stagecoach.storage.errors import (
    AccessDenied,
    NotFound,
    ObjectChanged,
    ObjectCorrupt,
    OutOfRange,
    StoreMisconfigured,
    StoreUnavailable,
    UriRefused,
    UsedAfterFork,
)
from stagecoach.storage.settings import Clock, StoreSettings, SystemClock
from stagecoach.storage.store import Store, open_store
from stagecoach.storage.uris import UriPolicy, as_uri, check_key

__all__ = [
    "AccessDenied",
    "Clock",
    "NotFound",
    "ObjectChanged",
    "ObjectCorrupt",
    "ObjectInfo",
    "OutOfRange",
    "Store",
    "StoreMisconfigured",
    "StoreSettings",
    "StoreUnavailable",
    "SystemClock",
    "UriPolicy",
    "UriRefused",
    "UsedAfterFork",
    "as_uri",
    "check_key",
    "open_store",
]
