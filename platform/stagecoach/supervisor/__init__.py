"""PID 1 of a training pod, and the parent process of a local job: `python -m stagecoach.supervisor`."""
