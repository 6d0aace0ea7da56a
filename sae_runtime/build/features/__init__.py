"""What latents mean: predicates over text, found on one part of the corpus and checked on others."""
