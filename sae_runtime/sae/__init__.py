"""Sparse autoencoders: encode, decode, load and save in SAELens' on-disk format."""

from sae_runtime.sae.io import load_sae, save_sae
from sae_runtime.sae.types import SAE, GatedSAE, JumpReLUSAE, ReLUSAE, TopKSAE

__all__ = ["SAE", "GatedSAE", "JumpReLUSAE", "ReLUSAE", "TopKSAE", "load_sae", "save_sae"]
