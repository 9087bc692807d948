"""Trained models asked about images."""
