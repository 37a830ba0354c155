"""Which addresses are refused, before anything is opened (reliability.md, B22 and B23)."""

import subprocess
import sys
from pathlib import Path

import pytest

from stagecoach.constants import ExitCode
from stagecoach.storage import UriPolicy, UriRefused, as_uri, open_store


@pytest.mark.parametrize(
    "uri",
    [
        "pipe:cat /etc/passwd",
        "pipe://cat",
        "PIPE:ls",
        "shell://ls",
        "ftp://host/x",
        "ssh://host/x",
        "github://a:b@/x",
        "data:text/plain,x",
        "javascript:1",
        "hdfs://n/x",
        "simplecache::s3://bucket/x",
        "filecache::file:///etc",
        "zip://x.zip::s3://bucket/a",
        "s3://bucket/a::file:///etc",
        "s3://key:secret@bucket/x",
        "s3://bucket/a/../../b",
        "s3://bucket/a/./b",
        "s3://bucket//b",
        "s3://bucket/a\0b",
        "s3://bucket/a\nb",
        "s3://",
        "s3:bucket",
        "s3://bucket/x?X-Amz-Signature=1",
        "file:///a/../etc",
        "file://..",
        "file://other-host/x",
        "file:relative",
        "/plain/path",
        "relative",
        "",
        "http://169.254.169.254/latest/meta-data",
        "https://8.8.8.8/bucket",
    ],
)
def test_refused_by_open_store(uri: str) -> None:
    with pytest.raises(UriRefused) as caught:
        open_store(uri)
    assert caught.value.exit_code == ExitCode.ASKED_WRONGLY
    assert caught.value.job_exit_code == ExitCode.BAD_CONFIG
    assert "secret" not in str(caught.value).replace("secretKeyRef", "")


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "[fd00:ec2::254]",
        "[fe80::1]",
        "[::1]",
        "[::ffff:169.254.169.254]",
        "127.0.0.1",
        "127.1",
        "0.0.0.0",
        "0",
        "10.1.2.3",
        "172.20.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "2852039166",
        "0xA9FEA9FE",
        "0251.254.43518",
        "localhost",
        "LOCALHOST.",
        "metadata.google.internal",
        "kubernetes.default.svc",
        "prefect.stagecoach.svc.cluster.local",
        "prefect-server",
        "user:password@10.0.0.1",
    ],
)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_hosts_inside_are_refused(scheme: str, host: str) -> None:
    with pytest.raises(UriRefused) as caught:
        UriPolicy().check(f"{scheme}://{host}/x")
    assert "password@" not in str(caught.value)


def is_allowed(policy: UriPolicy, uri: str) -> bool:
    try:
        policy.check(uri)
    except UriRefused:
        return False
    return True


@pytest.mark.parametrize(
    ("uri", "without_leave", "with_leave"),
    [
        ("http://mirror.stagecoach.svc/x", False, True),
        ("http://MIRROR.stagecoach.svc./x", False, True),  # the same name to a resolver
        ("http://other.stagecoach.svc/x", False, False),
        ("http://not-mirror.stagecoach.svc/x", False, False),  # leave is for a whole name
        ("http://x.mirror.stagecoach.svc/x", False, False),
        ("http://mirror.stagecoach.svc@10.0.0.1/x", False, False),
        ("https://example.org/data", True, True),
        ("https://93.184.216.34/data", True, True),
    ],
)
def test_an_allowed_host_may_be_inside_and_a_public_one_needs_no_leave(uri: str, without_leave: bool, with_leave: bool) -> None:
    assert is_allowed(UriPolicy(), uri) == without_leave
    assert is_allowed(UriPolicy(allowed_hosts=("mirror.stagecoach.svc",)), uri) == with_leave


def test_with_a_remote_root_files_are_refused_outside_the_allowed_folders(tmp_path: Path) -> None:
    allowed, outside = tmp_path / "allowed", tmp_path / "outside"
    allowed.mkdir()
    outside.mkdir()
    (allowed / "link").symlink_to(outside)
    policy = UriPolicy.for_root("s3://bucket/runs", file_roots=(str(allowed),))
    assert is_allowed(policy, f"file://{allowed}/x")
    for uri in ("file:///var/run/secrets/token", f"file://{outside}/x", f"file://{allowed}-not/x", f"file://{allowed}/link/x"):
        with pytest.raises(UriRefused, match="remote root"):
            open_store(uri, policy=policy)
    assert is_allowed(UriPolicy.for_root("file:///data"), "file:///var/x")


@pytest.mark.parametrize("name", ["my corpus", "50%", "%20", "a:b", "a?b#c", "größe"])
def test_a_folder_typed_at_a_keyboard_is_the_one_on_disk_whatever_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "there").write_bytes(b"x")
    assert open_store(as_uri(str(tmp_path / name))).read("there") == b"x"


def test_a_store_is_bound_to_its_root(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    store = open_store(f"file://{tmp_path}/root")
    for key in ("../secret", "a/../../secret", f"{tmp_path}/secret", "..", "a\0"):
        with pytest.raises(UriRefused):
            store.read(key)


def test_a_missing_package_or_scheme_is_said_by_name() -> None:
    with pytest.raises(Exception, match="pip install gcsfs"):
        open_store("gs://bucket/x")


def test_importing_storage_is_cheap() -> None:
    """No fsspec, s3fs, asyncio loop or logger is drawn in before a store is used."""
    code = (
        "import sys, stagecoach.storage\n"
        "heavy = [name for name in ('fsspec', 's3fs', 'botocore', 'aiohttp', 'asyncio', 'loguru', 'moto') if name in sys.modules]\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
