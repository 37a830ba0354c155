"""The `jobset` launcher: JobSet v1alpha2 gangs, queued by Kueue."""
