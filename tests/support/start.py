"""What has to be said and imported before Triton and any other module of ours, in a process that runs tests."""

import os

import torch

# A kernel is compiled or interpreted as this says when it is defined, in the first import of its module.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import longvision  # noqa: F401 before the commands, which load without models, whatever test comes first

torch.set_num_threads(1)
