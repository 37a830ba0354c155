"""Leaves the launcher for good, then becomes the command it is given. Run as a file, without site-packages: it must be quick.

The launcher started this as the leader of a session of its own, with the node's life lock open. The child that goes on is no session
leader (it can never get a terminal, so no hang-up reaches it) and no child of the launcher (which may die, or forget to wait for it).
"""

import os
import signal
import sys

EXEC_FAILED = 127  # the shell's code for a command that cannot be run


def main(command: list[str]) -> None:
    if os.fork():
        os._exit(0)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)  # a launcher that ignores one must not hand that on
    try:
        os.execvp(command[0], command)  # noqa: S606  # no shell is meant
    except OSError as error:
        print(f"cannot run {command[0]}: {error.strerror}", file=sys.stderr, flush=True)
        os._exit(EXEC_FAILED)


if __name__ == "__main__":
    main(sys.argv[1:])
