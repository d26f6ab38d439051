"""Measurements of speed, and their results in results/."""
