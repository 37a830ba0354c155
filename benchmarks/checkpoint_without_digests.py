"""The saving process with no digest: what `checkpoint.py` measures the cost of digests against. What it writes proves nothing."""

import sys

from stagecoach.storage import digest, upload
from stagecoach_workloads.checkpoints import saver


class NoDigest:
    """What writing costs without one."""

    def update(self, piece: bytes) -> None: ...

    def hex(self) -> str:
        return "0" * 32


if __name__ == "__main__":
    upload.Digest, digest.of = NoDigest, lambda _: "0" * 32  # type: ignore[misc, assignment]
    sys.exit(saver.main(sys.argv[1:]))
