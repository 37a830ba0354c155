"""`python -m stagecoach.cli`, where the console script is not on the path."""

from stagecoach.cli import main

if __name__ == "__main__":
    main()
