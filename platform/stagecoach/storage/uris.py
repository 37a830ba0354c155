"""Which addresses may be opened at all. Everything here is decided from the text of a URI: no file is touched, no name looked up."""

import ipaddress
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from stagecoach.errors import ConfigError
from stagecoach.redaction import redact
from stagecoach.storage.errors import UriRefused

OBJECT_STORES = ("s3", "gs", "gcs", "az", "abfs", "abfss")
SCHEMES = ("file", *OBJECT_STORES, "memory")
TEMPORARY_PREFIX = ".stagecoach-tmp-"  # how file:// names what is not finished; list() never shows it
MAX_KEY_BYTES = 1024  # what S3 allows

_INNER_NAMES = ("localhost", "metadata", "instance-data", "kubernetes", "kubernetes.default")
_INNER_SUFFIXES = (".localhost", ".local", ".internal", ".svc", ".cluster.local", ".localdomain")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+:")  # of two letters at least
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, kw_only=True)
class UriPolicy:
    """What a reader may reach. The default is for URIs that the person at the keyboard typed: any of our schemes, any file.

    `for_root` gives the policy for URIs that came out of data (a plan, an index, a manifest).
    """

    schemes: tuple[str, ...] = SCHEMES
    any_file: bool = True
    file_roots: tuple[str, ...] = ()  # with any_file=False: the folders (absolute paths) below which file:// may point
    allowed_hosts: tuple[str, ...] = ()  # http(s) hosts that may be private, e.g. a mirror inside the cluster

    @classmethod
    def for_root(cls, root: str, *, file_roots: tuple[str, ...] = (), allowed_hosts: tuple[str, ...] = ()) -> "UriPolicy":
        """With a remote root a file:// URI could only mean the pod's own disk (a mounted token, say): refused outside file_roots."""
        return cls(any_file=_scheme(root) == "file", file_roots=file_roots, allowed_hosts=allowed_hosts)

    def check(self, uri: str) -> None:
        """Raises UriRefused when the URI executes, reaches further than allowed, or carries a secret."""
        shown = redact(uri)
        _check_text(uri, shown)
        scheme = _scheme(uri)
        if scheme in ("http", "https"):
            self._check_host(uri, shown)
        elif scheme not in self.schemes:
            raise UriRefused(f"{shown}: scheme '{scheme}' is not one of {', '.join(self.schemes)}; copy the data to one of them")
        elif scheme == "file":
            self._check_file(uri, shown)
        else:
            _check_bucket(uri, shown)

    def _check_host(self, uri: str, shown: str) -> None:
        host = (urlsplit(uri).hostname or "").rstrip(".").lower()
        if not host:
            raise UriRefused(f"{shown}: names no host")
        if host not in self.allowed_hosts and _is_inner(host):
            raise UriRefused(
                f"{shown}: {host} is a loopback, link-local, private or cluster-internal address, which data may not point at; "
                "an administrator can put the host into the allowed hosts"
            )

    def _check_file(self, uri: str, shown: str) -> None:
        path = _file_path(uri, shown)
        if self.any_file:
            return
        real = os.path.realpath(path)
        if not any(real == root or real.startswith(root.rstrip("/") + "/") for root in map(os.path.realpath, self.file_roots)):
            roots = ", ".join(self.file_roots) or "none"
            raise UriRefused(
                f"{shown}: with a remote root, files may be read below the allowed folders only ({roots}); upload it to the root"
            )


DEFAULT_POLICY = UriPolicy()


def check_key(key: str, *, empty_ok: bool = False) -> str:
    """Returns the key. Raises UriRefused unless it is a relative '/'-separated path that cannot leave its root."""
    if not key and empty_ok:
        return key
    problem = _problem_with_key(key)
    if problem:
        raise UriRefused(f"key {redact(repr(key))} {problem}; keys are relative paths like 'a/b/c'")
    return key


def split_root(uri: str) -> tuple[str, str]:
    """Returns (scheme, path without leading scheme and trailing slash): ('s3', 'bucket/prefix') or ('file', '/folder')."""
    scheme = _scheme(uri)
    if scheme == "file":
        return scheme, _file_path(uri, redact(uri))
    return scheme, uri.partition("://")[2].strip("/")


def _problem_with_key(key: str) -> str | None:
    parts = key.split("/")
    if not key:
        return "is empty"
    if _CONTROL.search(key):
        return "holds a control character"
    if key.startswith("/"):
        return "is absolute"
    if any(part in ("", ".", "..") for part in parts):
        return "has an empty part, '.' or '..'"
    if any(part.startswith(TEMPORARY_PREFIX) for part in parts):
        return f"uses the name of unfinished files ({TEMPORARY_PREFIX}*)"
    if len(key.encode("utf-8", "replace")) > MAX_KEY_BYTES:
        return f"is longer than {MAX_KEY_BYTES} bytes"
    return None


def _check_text(uri: str, shown: str) -> None:
    if _CONTROL.search(uri):
        raise UriRefused(f"{shown!r}: holds a control character")
    if "::" in uri.partition("?")[0].partition("[")[0]:
        raise UriRefused(f"{shown}: chained URIs (scheme::scheme://) are not opened; give the plain address of the object")
    scheme = _scheme(uri)
    if not scheme:
        hint = f"file://{uri}" if uri.startswith("/") else "file:///folder or s3://bucket/prefix"
        raise UriRefused(f"{shown}: is no URI; write {hint}")
    if scheme == "pipe":
        raise UriRefused(f"{shown}: 'pipe:' would run a command; nothing is run to read data")
    if any(part in (".", "..") for part in re.split(r"[/\\]", uri.partition(":")[2])):
        raise UriRefused(f"{shown}: has a '.' or '..' part; write the path out")
    if scheme != "file" and "@" in urlsplit(uri).netloc and scheme not in ("abfs", "abfss"):
        raise UriRefused(f"{shown}: carries a user or password; credentials come from the environment (AWS_*), never from a URI")


def _check_bucket(uri: str, shown: str) -> None:
    rest = uri.partition("://")[2]
    if not uri.lower().startswith(_scheme(uri) + "://") or (not rest.strip("/") and _scheme(uri) != "memory"):
        raise UriRefused(f"{shown}: names no bucket; write {_scheme(uri)}://bucket/prefix")
    if "?" in rest or "#" in rest:
        raise UriRefused(f"{shown}: a query or fragment is not part of a bucket's address; signed URLs are not stores")
    if "//" in rest.strip("/"):
        raise UriRefused(f"{shown}: has an empty part ('//')")


def _scheme(uri: str) -> str:
    match = re.match(r"([A-Za-z][A-Za-z0-9+.\-]*):", uri)
    return match.group(1).lower() if match else ""


def _file_path(uri: str, shown: str) -> str:
    rest = uri.partition(":")[2]
    path = rest[2:] if rest.startswith("//") else rest
    if path.startswith("localhost/"):
        path = path.removeprefix("localhost")
    if not path.startswith("/"):
        raise UriRefused(f"{shown}: a file URI needs an absolute path and no host, like file:///folder")
    return "/" + path.strip("/")


def _is_inner(host: str) -> bool:
    if host in _INNER_NAMES or host.endswith(_INNER_SUFFIXES):
        return True
    address = _as_address(host)
    if address is None:
        return "." not in host  # a bare name can only be a neighbour's
    mapped = getattr(address, "ipv4_mapped", None)
    return not (mapped or address).is_global


def _as_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Reads an address as a resolver would: also 2852039166, 0xA9FEA9FE and 0251.254.43518."""
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))  # parses text only: no look-up
    except OSError:
        return None


def as_uri(text: str) -> str:
    """A path typed at a keyboard is a file. Raises ConfigError for nothing at all, UriRefused for a scheme that is not opened."""
    if not text.strip():
        raise ConfigError("the URI is empty; give a folder, or a URI like s3://bucket/corpus (. is the current folder)")
    if "\0" in text:
        raise ConfigError(f"{text!r} holds a NUL, which no path may")
    if _SCHEME.match(text):  # ./a:b is a file of that name
        DEFAULT_POLICY.check(text)
        return text.rstrip("/")
    return f"file://{Path(text).resolve()}"  # as it is written on disk: nothing here reads %20 as a space
