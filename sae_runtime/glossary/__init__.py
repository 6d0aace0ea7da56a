"""A deployer's own terms: what they are meant to mean, and how the model is found to read them."""

from sae_runtime.glossary.terms import Glossary, Term

__all__ = ["Glossary", "Term"]
