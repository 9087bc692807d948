"""Reads one thing from disk, in one place, whoever asks."""
