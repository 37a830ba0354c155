"""Stagecoach: the control plane and the run contract. Knows Kubernetes, never torch."""

__version__ = "0.1.0"
