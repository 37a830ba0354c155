"""Optimizers over sharded weights: AdamW, Adafactor, Muon, behind one small class (build.py)."""

from stagecoach_workloads.train.optimizers.build import Optimizer, build_optimizer

__all__ = ["Optimizer", "build_optimizer"]
