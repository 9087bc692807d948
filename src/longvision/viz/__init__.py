"""Drawings; usable without a run."""
