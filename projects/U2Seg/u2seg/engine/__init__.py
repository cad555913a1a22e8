"""Training: the trainer, its hooks, and the one function that completes a configuration."""
