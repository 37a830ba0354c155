"""Readers of the formats that `stagecoach data convert` takes."""
