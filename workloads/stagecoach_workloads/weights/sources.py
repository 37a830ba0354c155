"""Where tensors are read from: a safetensors folder, at any URI fsspec knows, one shard at a time; or tensors in memory."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import fsspec
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from stagecoach.errors import CheckpointError, ConfigError

INDEX = "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class TensorSource(Protocol):
    """Named tensors that are read in pieces."""

    uri: str

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor's shape, in an order in which reading is cheap (shard by shard)."""
        ...

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows [start, stop) of a tensor, on the CPU."""
        ...


class TensorsInMemory:
    """A state dict as a source."""

    def __init__(self, tensors: Mapping[str, Tensor], uri: str = "memory") -> None:
        self.uri, self._tensors = uri, tensors

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor's shape."""
        return {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows [start, stop) of a tensor."""
        tensor = self._tensors[name]
        return tensor[start:stop] if tensor.dim() else tensor


class SafetensorsFolder:
    """`*.safetensors` of one folder. At most one shard is open, and at most one copied from a remote store, at a time.

    Raises ConfigError when the folder holds only pickles or nothing, CheckpointError when a file is cut off or its index lies.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self._filesystem, self._root = fsspec.core.url_to_fs(self.uri)
        self._scratch = tempfile.TemporaryDirectory(prefix="stagecoach-weights-")
        self._open: tuple[str, Any] | None = None
        self._shards = self._list_shards()
        self._shapes, self._shard_of = self._scan()

    def __enter__(self) -> "SafetensorsFolder":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the open shard and of what was copied."""
        self._open = None
        self._scratch.cleanup()

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor's shape, shard by shard."""
        return self._shapes

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows [start, stop) of a tensor. Raises KeyError when there is none of that name."""
        reader = self._reader(self._shard_of[name])
        if not self._shapes[name]:
            return reader.get_tensor(name)
        return reader.get_slice(name)[start : stop if stop is not None else self._shapes[name][0]]

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON file of the folder. Raises ConfigError when it is missing or no JSON."""
        return read_json(self.uri, name)

    def _list_shards(self) -> list[str]:
        try:
            names = sorted(Path(path).name for path in self._filesystem.ls(self._root, detail=False))
        except FileNotFoundError:
            raise ConfigError(f"{self.uri} does not exist; give a folder with config.json and *.safetensors") from None
        if INDEX in names:
            stated = set(read_json(self.uri, INDEX)["weight_map"].values())
            if missing := sorted(stated - set(names)):
                raise CheckpointError(f"{self.uri}: {INDEX} names {', '.join(missing)}, which the folder lacks; copy the missing shards")
            return sorted(stated)
        shards = [name for name in names if name.endswith(".safetensors")]
        if shards:
            return shards
        if pickled := [name for name in names if name.endswith(PICKLED)]:
            raise ConfigError(
                f"{self.uri}/{pickled[0]} is a pickle: reading one runs the code in it, so Stagecoach never does; "
                "convert it to safetensors where you trust it (`safetensors.torch.save_file`)"
            )
        raise ConfigError(f"{self.uri} has no *.safetensors; give a folder with config.json and *.safetensors")

    def _scan(self) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
        shapes: dict[str, tuple[int, ...]] = {}
        shard_of: dict[str, str] = {}
        for shard in self._shards:
            reader = self._reader(shard)
            for name in reader.keys():  # noqa: SIM118 - not a mapping
                if name in shard_of:
                    raise CheckpointError(f"{self.uri}: `{name}` is in {shard_of[name]} and in {shard}; remove the stale shard")
                shapes[name], shard_of[name] = tuple(reader.get_slice(name).get_shape()), shard
        return shapes, shard_of

    def _reader(self, shard: str) -> Any:
        if self._open is None or self._open[0] != shard:
            self._open = None  # unmap before the next one is copied
            path = self._fetch(shard)
            try:
                self._open = (shard, safe_open(path, framework="pt", device="cpu"))
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{self.uri}/{shard} is cut off or is no safetensors file ({error}); copy it again") from error
        return self._open[1]

    def _fetch(self, shard: str) -> str:
        source = f"{self._root.rstrip('/')}/{shard}"
        if "file" in _protocols(self._filesystem):
            return source
        for old in Path(self._scratch.name).iterdir():
            old.unlink()
        target = str(Path(self._scratch.name) / shard)
        self._filesystem.get_file(source, target)
        return target


def read_json(uri: str, name: str) -> dict[str, Any]:
    """A JSON object of a folder. Raises ConfigError when it is missing or is no JSON object."""
    path = f"{uri.rstrip('/')}/{name}"
    try:
        with fsspec.open(path, "rb") as file:
            loaded = json.loads(file.read())
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; a weights folder needs it") from None
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON ({error}); copy it again") from error
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path} holds a {type(loaded).__name__}, not an object; copy it again")
    return loaded


def _protocols(filesystem: Any) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def bytes_of(tensor: Tensor) -> int:
    """Size in memory."""
    return tensor.numel() * torch.empty((), dtype=tensor.dtype).element_size()
