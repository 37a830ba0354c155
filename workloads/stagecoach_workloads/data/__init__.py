"""Datasets on object storage: made, converted, indexed, planned, streamed (README.md of this room; interfaces.md section 5)."""
