"""Ending a local job."""

from stagecoach.launch.local_state import JobDirectory
from stagecoach.launch.processes import end_processes


def cancel_job(directory: JobDirectory) -> None:
    """SIGTERM, the job's own grace period, SIGKILL. Idempotent; returns when no process of the job is left.

    Raises ClusterUnavailable when a process outlives SIGKILL.
    """
    with directory.locked() as there:
        job = directory.read() if there else None
        if job is None:
            return
        if any(view.is_alive or view.condition == "absent" for view in directory.views(job)):
            directory.mark_cancelled()  # under the lock: from now on nobody starts a node of it
    end_processes(directory.path, directory.nodes(job), grace_s=job.grace_s)
