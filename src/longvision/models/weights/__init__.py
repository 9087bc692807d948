"""Weights in files: formats, conversion, hub."""
