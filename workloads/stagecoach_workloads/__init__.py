"""What runs in a training pod: models, data, parallelism, training, checkpoints, evaluation. Knows torch, never Kubernetes."""
