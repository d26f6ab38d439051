"""Measurements of speed and accuracy, each a script that writes a page of results."""
