"""Measuring flags: prompts with planted senses and the figures drawn from them."""
