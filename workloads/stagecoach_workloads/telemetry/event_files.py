"""TensorBoard's event files: records of (length, checksum, body, checksum), as TFRecord has them.

Written here, not by tensorboard's own writer: that one buffers, blocks when its queue is full, and leaves a torn record where a disk was
full. Ours are whole after every write, so that a kill leaves nothing broken, and are cut into pieces, because an object in a bucket can
only be replaced and the supervisor publishes what changed.
"""

import os
import socket
import struct
import time
from pathlib import Path

FILE_BYTES = 4 << 20  # then the next file begins: what is published again every few seconds
TOTAL_BYTES = 1 << 30  # of one attempt; 200,000 steps of 25 scalars take a quarter


class EventFiles:
    """The files of one process in `folder`, by name in the order they are written. For one thread."""

    def __init__(self, folder: Path, *, file_bytes: int = FILE_BYTES, total_bytes: int = TOTAL_BYTES) -> None:
        """Nothing is touched before the first write."""
        self._folder, self._file_bytes, self._left = folder, file_bytes, total_bytes
        self._prefix = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        self._number = 0
        self._file = -1
        self._size = 0

    def write(self, event: bytes) -> None:
        """Adds one serialized `Event`. Raises OSError; the file then ends with the record before."""
        if self._file < 0 or self._size >= self._file_bytes:
            self._next_file()
        self._append(record(event))

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _next_file(self) -> None:
        self.close()
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{self._prefix}.{self._number:06d}"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._number += 1
        self._size = 0
        try:
            self._append(record(_version()))
        except OSError:
            self.close()
            raise

    def _append(self, body: bytes) -> None:
        if len(body) > self._left:
            raise OSError(f"this attempt's TensorBoard files have reached their limit of {TOTAL_BYTES >> 20} MiB")
        try:
            written = os.write(self._file, body)
            if written < len(body):
                raise OSError(f"the disk took {written} of {len(body)} bytes")
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        self._size += len(body)
        self._left -= len(body)


def record(body: bytes) -> bytes:
    """One TFRecord."""
    length = struct.pack("<Q", len(body))
    return length + struct.pack("<I", masked_crc32c(length)) + body + struct.pack("<I", masked_crc32c(body))


def _version() -> bytes:
    from stagecoach_workloads.telemetry.protos import Event

    event: bytes = Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString()
    return event


def _build_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_TABLE = _build_table()


def masked_crc32c(body: bytes) -> int:
    """CRC-32C (Castagnoli), rotated and shifted as TFRecord does, so that a checksum of checksums is no fixed point."""
    crc = 0xFFFFFFFF
    for byte in body:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
