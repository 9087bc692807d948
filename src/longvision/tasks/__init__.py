"""A model with its loss and metrics, and what a run leaves behind."""

from longvision.tasks.classification import Classification

__all__ = ["Classification"]
