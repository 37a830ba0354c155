"""Prefect flows: they know order and retries, nothing else. One file per flow."""
