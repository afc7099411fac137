"""Training: ``v1fast.training.fit`` fits an encoder to a simulated population."""
