"""`stagecoach` and `python -m stagecoach`. Nothing but `sys` is imported before the guard: Ctrl-C while the command line itself is still
being imported ends like Ctrl-C at any other moment, without a traceback.
"""

import sys


def main() -> None:
    """The console script. Ends the process; 130 after Ctrl-C."""
    status: int | str | None = 130
    try:
        from stagecoach.cli import main as run

        run()
    except SystemExit as ended:
        status = ended.code
    except KeyboardInterrupt:
        _say("stopped")
    _ignore_interrupts()  # a second Ctrl-C must not hit the interpreter while it tidies up
    sys.exit(status)


def _say(word: str) -> None:
    """To stderr, where there is one that takes it. It is None when it was closed at the start, and `print` would take stdout then."""
    try:
        if sys.stderr is not None:
            print(word, file=sys.stderr, flush=True)
    except OSError:
        pass


def _ignore_interrupts() -> None:
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)


if __name__ == "__main__":
    main()
