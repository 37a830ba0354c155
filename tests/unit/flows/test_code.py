"""Code bundles: the same files give the same bytes; what is no plain file, too large or replaced is refused, packing and unpacking."""

import hashlib
import io
import os
import tarfile
from pathlib import Path

import pytest

from stagecoach.contract.ledger import Runs
from stagecoach.errors import ConfigError
from stagecoach.stages import code
from stagecoach.stages.code import build_bundle, check_code, code_uri, store_bundle
from stagecoach.supervisor.code import python_path, unpack_code


def folder_with(tmp_path: Path, name: str = "mine") -> Path:
    folder = tmp_path / name
    (folder / "pack" / "__pycache__").mkdir(parents=True)
    (folder / "pack" / "__init__.py").write_text("X = 1\n")
    (folder / "pack" / "__pycache__" / "x.pyc").write_bytes(b"junk")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("secret")
    (folder / "notes.txt").write_text("hello")
    return folder


def test_the_same_files_give_the_same_bundle_and_come_back_as_they_were(tmp_path: Path) -> None:
    one = build_bundle(folder_with(tmp_path, "one"))
    other_folder = folder_with(tmp_path, "other")
    os.utime(other_folder / "notes.txt", (1, 1))
    (other_folder / "notes.txt").chmod(0o777)
    assert build_bundle(other_folder) == one
    assert sorted(one.files) == ["notes.txt", "pack/__init__.py"]
    runs = Runs.open(f"file://{tmp_path}/root")
    uri = store_bundle(runs, one)
    assert store_bundle(runs, one) == uri == code_uri(runs, one.digest)
    check_code(runs, one.digest)
    there = unpack_code(uri, tmp_path / "node" / "code")
    assert (there / "pack" / "__init__.py").read_text() == "X = 1\n"
    assert python_path(there, "/before") == f"{there}{os.pathsep}/before"


def test_another_byte_is_another_bundle(tmp_path: Path) -> None:
    folder = folder_with(tmp_path)
    before = build_bundle(folder).digest
    (folder / "pack" / "__init__.py").write_text("X = 2\n")
    assert build_bundle(folder).digest != before


def test_links_are_refused_by_name(tmp_path: Path) -> None:
    folder = folder_with(tmp_path)
    (folder / "pack" / "data").symlink_to("/etc")
    with pytest.raises(ConfigError, match="pack/data is a link"):
        build_bundle(folder)


def test_what_is_too_large_or_holds_no_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_with(tmp_path)
    monkeypatch.setattr(code, "MAX_BYTES", 7)
    with pytest.raises(ConfigError, match="more than"):
        build_bundle(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no Python file"):
        build_bundle(tmp_path / "empty")
    with pytest.raises(ConfigError, match="no such folder"):
        build_bundle(tmp_path / "nowhere")


def test_a_bundle_that_is_missing_or_replaced_is_refused(tmp_path: Path) -> None:
    runs = Runs.open(f"file://{tmp_path}/root")
    bundle = build_bundle(folder_with(tmp_path))
    with pytest.raises(ConfigError, match="is not under"):
        check_code(runs, bundle.digest)
    uri = store_bundle(runs, bundle)
    runs.store.publish(f"code/{bundle.digest}.tar", bundle.body + b"x")
    with pytest.raises(ConfigError, match="not the one in its name"):
        unpack_code(uri, tmp_path / "node")
    with pytest.raises(ConfigError, match="not a code bundle"):
        unpack_code(f"file://{tmp_path}/x.tar", tmp_path / "node")
    assert not (tmp_path / "node").exists()


def forged(tmp_path: Path, *members: tarfile.TarInfo) -> str:
    """A tar that somebody else made, under its right digest."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(b"x" * member.size))
    body = buffer.getvalue()
    path = tmp_path / f"{hashlib.sha256(body).hexdigest()}.tar"
    path.write_bytes(body)
    return path.as_uri()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.size = kind, link, 1 if kind == tarfile.REGTYPE else 0
    return made


@pytest.mark.parametrize(
    "bad",
    [
        (member("../out.py"),),
        (member("/abs.py"),),
        (member("a/../../out.py"),),
        (member("link", tarfile.SYMTYPE, "/etc/passwd"),),
        (member("hard", tarfile.LNKTYPE, "a.py"),),
        (member("pipe", tarfile.FIFOTYPE),),
        (member("a.py"), member("a.py")),
        (member("a"), member("a/b.py")),
    ],
)
def test_members_that_lead_outside_or_are_no_files_are_refused(tmp_path: Path, bad: tuple[tarfile.TarInfo, ...]) -> None:
    with pytest.raises(ConfigError, match="not made by Stagecoach"):
        unpack_code(forged(tmp_path, *bad), tmp_path / "node" / "code")
    assert not (tmp_path / "out.py").exists()
    assert not (tmp_path / "node" / "out.py").exists()
