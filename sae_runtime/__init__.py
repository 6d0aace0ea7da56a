"""Sensecheck's runtime: sparse autoencoders, engines that capture activations, the feature catalog and the detector."""
