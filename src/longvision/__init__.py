"""Vision backbones whose cost grows with the number of tokens. Importing it registers the models with timm:

import longvision, timm
model = timm.create_model("vim_tiny_patch16_224")
"""

from longvision import models  # registers them
from longvision.version import __version__

__all__ = ["__version__", "models"]
