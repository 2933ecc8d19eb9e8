"""The training loop, checkpoints, evaluation."""
