"""Sparse autoencoders: encode, decode, load and save in SAELens' on-disk format."""

from sae_runtime.sae.io import load_sae, save_sae
from sae_runtime.sae.types import SAE, JumpReLUSAE, ReLUSAE, TopKSAE

__all__ = ["SAE", "JumpReLUSAE", "ReLUSAE", "TopKSAE", "load_sae", "save_sae"]
