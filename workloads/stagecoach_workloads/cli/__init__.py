"""Command groups of the training room; each module imports only click and the standard library at its top."""
