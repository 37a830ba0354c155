"""Published benchmarks, read from their own files."""
