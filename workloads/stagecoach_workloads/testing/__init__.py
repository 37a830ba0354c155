"""Workloads that tests run: small, real, and ordered to fail."""
