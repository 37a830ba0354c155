"""Prefect flows: they know order and retries, nothing else. Importing the room imports no Prefect."""
