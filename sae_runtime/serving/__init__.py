"""Serving a model with vLLM: the server process and the reading's HTTP routes inside it."""

from sae_runtime.serving.server import ModelServer, ServerOptions, bearer, is_healthy, reads_prompts, served_model

__all__ = ["ModelServer", "ServerOptions", "bearer", "is_healthy", "reads_prompts", "served_model"]
