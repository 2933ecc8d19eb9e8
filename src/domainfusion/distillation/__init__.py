"""Latent distillation: corruption by confidence, and the slope of its loss."""
