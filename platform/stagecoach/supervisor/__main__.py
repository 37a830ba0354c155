"""`python -m stagecoach.supervisor`."""

from stagecoach.supervisor.main import main

if __name__ == "__main__":
    main()
