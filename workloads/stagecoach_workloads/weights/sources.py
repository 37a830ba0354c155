"""Where tensors are read from: a safetensors folder, at any URI the store knows, one shard at a time; or tensors in memory."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open
from torch import Tensor

from stagecoach.errors import CheckpointError, ConfigError
from stagecoach_workloads.weights.folder import Folder

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
        self.folder = Folder(uri)
        self.uri = self.folder.uri
        self._scratch = tempfile.TemporaryDirectory(prefix="stagecoach-weights-")
        self._open: tuple[str, Any] | None = None
        try:
            self._shapes, self._shard_of, self.types = self._scan()
        except BaseException:
            self.close()
            raise

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

    def _scan(self) -> tuple[dict[str, tuple[int, ...]], dict[str, str], dict[str, str]]:
        shapes: dict[str, tuple[int, ...]] = {}
        shard_of: dict[str, str] = {}
        types: dict[str, str] = {}
        for shard in list_shards(self.folder):
            reader = self._reader(shard)
            for name in reader.keys():  # noqa: SIM118 - not a mapping
                if name in shard_of:
                    raise CheckpointError(f"{self.uri}: `{name}` is in {shard_of[name]} and in {shard}; remove the stale shard")
                part = reader.get_slice(name)
                shapes[name], shard_of[name], types[name] = tuple(part.get_shape()), shard, part.get_dtype()
        return shapes, shard_of, types

    def _reader(self, shard: str) -> Any:
        if self._open is None or self._open[0] != shard:
            self._open = None  # unmap before the next one is copied
            path = self.folder.path_of(shard, Path(self._scratch.name))
            try:
                self._open = (shard, safe_open(path, framework="pt", device="cpu"))
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{self.uri}/{shard} is cut off or is no safetensors file ({error}); copy it again") from error
        return self._open[1]


def list_shards(folder: Folder) -> list[str]:
    """The safetensors files that count: those the index names, or all there are. See `SafetensorsFolder` for what is raised."""
    names = folder.names()
    if INDEX in names:
        weight_map = folder.read_json(INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{folder.uri}/{INDEX} has no weight_map (tensor to shard); copy it again, or remove it")
        stated = {str(shard) for shard in weight_map.values()}
        if missing := sorted(stated - set(names)):
            raise CheckpointError(f"{folder.uri}: {INDEX} names {', '.join(missing)}, which the folder lacks; copy the missing shards")
        return sorted(stated)
    if shards := [name for name in names if name.endswith(".safetensors")]:
        return shards
    if pickled := [name for name in names if name.endswith(PICKLED)]:
        raise ConfigError(
            f"{folder.uri}/{pickled[0]} is a pickle: reading one runs the code in it, so Stagecoach never does; "
            "convert it to safetensors where you trust it (`safetensors.torch.save_file`)"
        )
    raise ConfigError(f"{folder.uri} has no *.safetensors; give a folder with config.json and *.safetensors")
