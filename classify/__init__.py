"""The scripts for image classification."""
