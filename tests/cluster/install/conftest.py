"""The chart on nodes: collected where STAGECOACH_TEST_INSTALL=yes says that both images of helm/stagecoach/images.txt are on them."""

import os

if os.environ.get("STAGECOACH_TEST_INSTALL") != "yes":
    collect_ignore_glob = ["test_*.py"]
