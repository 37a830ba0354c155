"""A folder of weights at any URI that the platform's store knows, or at a plain local path."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stagecoach.errors import ConfigError
from stagecoach.storage import NotFound, open_store

COPY_BYTES = 32 * 2**20


class Folder:
    """Files of one folder, read and published whole. Plain paths and file:// are also available as paths, to be mapped into memory."""

    def __init__(self, uri: str) -> None:
        self.uri = (uri if "://" in uri else f"file://{Path(uri).absolute()}").rstrip("/")
        self._local = Path(self.uri.removeprefix("file://")) if self.uri.startswith("file://") else None
        self._store = open_store(self.uri)

    def present(self) -> list[str]:
        """Files directly in the folder, sorted; none when it does not exist."""
        return sorted(info.key for info in self._store.list() if "/" not in info.key)

    def names(self) -> list[str]:
        """Files directly in the folder, sorted. Raises ConfigError when there are none."""
        names = self.present()
        if not names:
            raise ConfigError(f"{self.uri} does not exist or is empty; give a folder with config.json and *.safetensors")
        return names

    def read(self, name: str) -> bytes:
        """A whole file. Raises ConfigError when it is missing."""
        try:
            return self._store.read(name)
        except NotFound:
            raise ConfigError(f"{self.uri}/{name} does not exist; a weights folder needs it") from None

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON object. Raises ConfigError when it is missing or is none."""
        try:
            loaded = json.loads(self.read(name))
        except ValueError as error:
            raise ConfigError(f"{self.uri}/{name} is no JSON ({error}); copy it again") from error
        if not isinstance(loaded, dict):
            raise ConfigError(f"{self.uri}/{name} holds a {type(loaded).__name__}, not an object; copy it again")
        return loaded

    def path_of(self, name: str, scratch: Path) -> Path:
        """The file on this machine: itself, or a copy in `scratch`, from which older copies are removed first."""
        if self._local is not None:
            return self._local / name
        for old in scratch.iterdir():
            old.unlink()
        size, target = self._store.stat(name).size, scratch / name
        with target.open("wb") as file:
            for start in range(0, size, COPY_BYTES):
                file.write(self._store.read_ranges(name, [(start, min(COPY_BYTES, size - start))])[0])
        return target

    def delete(self, name: str) -> None:
        """Removes a file, if it is there."""
        self._store.delete(name)

    def publish(self, name: str, body: bytes) -> None:
        """Writes a file so that a reader sees all of it or none."""
        self._store.publish(name, body)

    def publish_file(self, name: str, path: Path) -> None:
        """Sends a file up in pieces."""
        self._store.publish(name, _pieces(path))

    def publish_json(self, name: str, value: dict[str, Any]) -> None:
        """Writes a JSON object, keys sorted."""
        self.publish(name, json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False).encode() + b"\n")


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(COPY_BYTES):
            yield piece
