"""Is this cluster, bucket and machine fit to train? Every rank measures, rank 0 judges (`stagecoach preflight`).

Runs as a job like any other, through the same launcher and supervisor: `stagecoach_workloads.preflight:main`.
"""

from stagecoach_workloads.preflight.run import main

__all__ = ["main"]
