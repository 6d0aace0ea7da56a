"""Measurements as ratios against a named baseline, side by side in one run. Never run beside other heavy work."""
