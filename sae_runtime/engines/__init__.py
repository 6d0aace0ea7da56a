"""Engines that capture a model's residual stream for a prompt."""
