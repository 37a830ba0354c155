"""A researcher's code bundle, unpacked on this node (`stages/code.py` packs it): proven by its digest first, then written file by file.

tarfile's own extraction is not used: its filters have been bypassed again and again (reliability.md section 5). What is no plain file
inside of the folder is refused, whoever packed it.
"""

import hashlib
import io
import os
import re
import tarfile
from pathlib import Path, PurePosixPath

from stagecoach.errors import ConfigError
from stagecoach.storage import NotFound, open_store

MAX_BYTES = 40_000_000  # of the tar: twice what may be packed, for its headers
MAX_FILES = 5_000
_NAME = re.compile(r"(?P<digest>[0-9a-f]{64})\.tar")


def unpack_code(uri: str, folder: Path) -> Path:
    """Writes the bundle's files below `folder`, which must not exist. Raises ConfigError for anything that is not as it was packed, and
    StorageError as the bucket does."""
    parent, _, name = uri.rpartition("/")
    named = _NAME.fullmatch(name)
    if named is None:
        raise ConfigError(f"launch.code_uri {uri}: not a code bundle (…/code/<64 hex digits>.tar); `stagecoach run --code DIR` makes one")
    store = open_store(parent)
    try:
        size = store.stat(name).size
        if size > MAX_BYTES:
            raise ConfigError(f"{uri} has {size:,} bytes; a code bundle has at most {MAX_BYTES:,}")
        body = store.read(name)
    except NotFound:
        raise ConfigError(f"{uri} is not there; put the bundle into the bucket again with `stagecoach run --code DIR`") from None
    found = hashlib.sha256(body).hexdigest()
    if found != named["digest"]:
        raise ConfigError(f"{uri} has SHA-256 {found[:16]}, not the one in its name: it was replaced or damaged; remove it and run again")
    folder.mkdir(parents=True, mode=0o700)
    write_members(body, folder, uri)
    return folder


def write_members(body: bytes, folder: Path, uri: str) -> None:
    """Every member as a new file. Raises ConfigError for links, devices, paths that lead outside, and names that come twice."""
    try:
        with tarfile.open(fileobj=io.BytesIO(body), mode="r:") as tar:
            for number, member in enumerate(tar):
                path = PurePosixPath(member.name)
                if number >= MAX_FILES:
                    raise ConfigError(f"{uri} has more than {MAX_FILES} files")
                if not member.isreg() or path.is_absolute() or not path.parts or ".." in path.parts:
                    raise ConfigError(f"{uri}: member {member.name!r} is no plain file inside of the bundle; it was not made by Stagecoach")
                source = tar.extractfile(member)
                assert source is not None
                write_new(folder.joinpath(*path.parts), source.read())
    except (tarfile.TarError, FileExistsError, NotADirectoryError) as error:
        raise ConfigError(f"{uri} cannot be unpacked ({error}); it was not made by Stagecoach") from None


def write_new(path: Path, body: bytes) -> None:
    """Raises FileExistsError: nothing of a bundle ever writes over anything, or through a link."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(body)


def python_path(folder: Path, inherited: str) -> str:
    """The bundle first, then what was there."""
    return os.pathsep.join(part for part in (str(folder), inherited) if part)
