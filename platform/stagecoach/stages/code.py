"""A researcher's own code as a bundle in the bucket: a deterministic tar named by its digest, which is part of the plan's identity.

Only regular files, no links, sizes capped; `code/{digest}.json` beside it lists what it holds. Unpacked by the
supervisor (`supervisor/code.py`).
"""

import hashlib
import io
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from stagecoach.contract.control import CodeBundle
from stagecoach.contract.ledger import JobFolder, Runs
from stagecoach.contract.plan import StagePlan
from stagecoach.contract.records import encode
from stagecoach.errors import ConfigError

MAX_BYTES = 20_000_000  # of all files
MAX_FILES = 5_000
SKIPPED = ("__pycache__", "node_modules")  # and whatever begins with a dot


@dataclass(frozen=True)
class Bundle:
    """`files`: path inside the bundle -> SHA-256."""

    digest: str
    body: bytes
    files: dict[str, str]


def build_bundle(folder: Path) -> Bundle:
    """The same files give the same bytes, whoever packs them, whenever and wherever. Raises ConfigError for links and what is too large."""
    if not folder.is_dir():
        raise ConfigError(f"--code {folder}: no such folder; name the folder that holds your packages")
    files: dict[str, str] = {}
    buffer, total = io.BytesIO(), 0
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path in _files(folder):
            name = path.relative_to(folder).as_posix()
            body = path.read_bytes()
            total += len(body)
            if total > MAX_BYTES or len(files) >= MAX_FILES:
                raise ConfigError(
                    f"--code {folder}: more than {MAX_BYTES // 1_000_000} MB or {MAX_FILES} files (at {name}); a bundle is for code; "
                    "keep data in the bucket, and results and environments outside of the folder"
                )
            try:
                tar.addfile(_member(name, len(body)), io.BytesIO(body))
            except ValueError as error:
                raise ConfigError(f"--code {folder}: {name!r} cannot be packed ({error}); give it a shorter, plain name") from None
            files[name] = hashlib.sha256(body).hexdigest()
    if not any(name.endswith(".py") for name in files):
        raise ConfigError(f"--code {folder}: there is no Python file in it; name the folder that holds your packages")
    body = buffer.getvalue()
    return Bundle(hashlib.sha256(body).hexdigest(), body, files)


def store_bundle(runs: Runs, bundle: Bundle) -> str:
    """Puts the bundle into the bucket, then its list, which says that it is whole. Any number of times. Returns the tar's URI."""
    runs.store.create_if_absent(f"code/{bundle.digest}.tar", bundle.body)
    listed = CodeBundle(
        digest=bundle.digest, bytes=len(bundle.body), files=bundle.files, at=datetime.now(UTC).isoformat(timespec="seconds")
    )
    runs.store.create_if_absent(f"code/{bundle.digest}.json", encode(listed))
    return runs.store.uri_of(f"code/{bundle.digest}.tar")


def code_uri(runs: Runs, digest: str | None) -> str | None:
    """Where the bundle of that digest lies."""
    return None if digest is None else runs.store.uri_of(f"code/{digest}.tar")


def code_uri_of(folder: JobFolder, plan: StagePlan) -> str | None:
    """The same of a stage's folder, {root}/runs/{run}/stages/{stage}: whatever loads its weights must load its code."""
    return code_uri(Runs.open(folder.uri.rpartition("/runs/")[0]), plan.code) if plan.code is not None else None


def check_code(runs: Runs, digest: str | None) -> None:
    """Raises ConfigError when the bundle is not in the bucket."""
    if digest is not None and not runs.store.exists(f"code/{digest}.json"):
        raise ConfigError(f"code bundle {digest[:16]} is not under {runs.store.uri}/code; put it there with `stagecoach run --code DIR`")


def _files(folder: Path) -> Iterator[Path]:
    """Regular files in order of their paths. Raises ConfigError for a link or anything else that is no file."""

    def refuse(error: OSError) -> None:
        raise ConfigError(f"--code {folder}: {error.filename} cannot be read ({error.strerror}); make it readable, or take it out")

    for where, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not _is_skipped(name))
        for name in sorted([*names, *folders]):
            path = Path(where) / name
            if path.is_symlink() and not _is_skipped(name):
                raise ConfigError(f"--code {folder}: {path.relative_to(folder)} is a link; put the file itself there")
        for name in sorted(names):
            path = Path(where) / name
            if _is_skipped(name):
                continue
            if not path.is_file():
                raise ConfigError(f"--code {folder}: {path.relative_to(folder)} is no regular file; take it out of the folder")
            yield path


def _is_skipped(name: str) -> bool:
    return name.startswith(".") or name in SKIPPED or name.endswith((".pyc", ".pyo"))


def _member(name: str, size: int) -> tarfile.TarInfo:
    """Without a time, an owner or a mode of its own."""
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = size, 0, 0o644
    return member
