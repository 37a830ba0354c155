"""The bucket: can be written, read and deleted, and of two creators only one wins."""

import uuid
from collections.abc import Iterator

from stagecoach.doctor.facts import Fact, Place
from stagecoach.errors import StagecoachError
from stagecoach.storage import NotFound, open_store

FOLDER = "doctor"


def check_bucket(place: Place) -> Iterator[Fact]:
    """Writes one small object under {root}/doctor/ and removes it."""
    if place.root.startswith("file:") and place.site.launcher != "local":
        yield Fact(
            check="bucket",
            verdict="bad",
            fact=f"root {place.root} is a folder, and launcher {place.site.launcher} runs jobs in pods",
            do="set `root` of the site to an object store, such as s3://bucket/prefix",
        )
        return
    store, key, body = open_store(place.root), f"{FOLDER}/{uuid.uuid4().hex}", b"stagecoach doctor"
    try:
        first, second = store.create_if_absent(key, body), store.create_if_absent(key, b"a second creator")
        read = store.read(key)
        store.delete(key)
    except StagecoachError as error:
        yield Fact(
            check="bucket",
            verdict="bad",
            fact=f"{place.root}: {error}",
            do="check the name, its policy (get, put, delete and list are needed), the credentials, and networkPolicies.bucket",
        )
        return
    if not first or second or read != body:
        yield Fact(
            check="bucket",
            verdict="bad",
            fact=f"{place.root}: of two conditional creates {'both' if second else 'none'} won",
            do="use a store that honours If-None-Match: *, as S3 does: attempts are fenced by it",
        )
        return
    try:
        store.read(key)
    except NotFound:
        yield Fact(check="bucket", verdict="ok", fact=f"{place.root}: written, read, deleted; of two conditional creates one won")
    else:
        yield Fact(
            check="bucket",
            verdict="bad",
            fact=f"{place.root}: an object is still read after it was deleted",
            do="use a store with consistent reads; object locks and caching proxies get in the way",
        )
