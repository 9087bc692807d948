"""LightningModules: a model with its loss and metrics. They know no run folder."""
