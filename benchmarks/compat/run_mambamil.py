"""MambaMIL (isyangshu/MambaMIL; MIT by its README, its mamba/ Apache-2.0), from a checkout: models/MambaMIL.py on a bag
of features as its README extracts them, by its own mixers, which call the extensions directly. See foreign.py.

Needs einops. Its mamba/ imports names of mamba_ssm's language model, which nothing here uses: empty classes stand
there.
"""

import sys
from types import ModuleType

import torch
import torch.nn.functional as F
from foreign import checkout, report

FEATURES, INSTANCES, CLASSES = 1024, 2000, 2
UNUSED = {
    "mamba_ssm.models": "",
    "mamba_ssm.models.config_mamba": "MambaConfig",
    "mamba_ssm.modules.mamba_simple": "Block",
    "mamba_ssm.utils": "",
    "mamba_ssm.utils.generation": "GenerationMixin",
    "mamba_ssm.utils.hf": "load_config_hf load_state_dict_hf",
}


def main() -> None:
    repository = checkout(".", "models/MambaMIL.py")
    for module, names in UNUSED.items():
        stand_in = sys.modules.setdefault(module, ModuleType(module))
        vars(stand_in).update({name: type(name, (), {}) for name in names.split()})
    from models.MambaMIL import MambaMIL

    bag, label = torch.randn(1, INSTANCES, FEATURES), torch.zeros(1, dtype=torch.long)
    for kind in ("SRMamba", "BiMamba", "Mamba"):
        torch.manual_seed(0)
        model = MambaMIL(FEATURES, CLASSES, dropout=0.25, act="relu", type=kind)
        report(f"MambaMIL {kind}", repository, model, bag, lambda model, x: F.cross_entropy(model(x)[0], label))


if __name__ == "__main__":
    main()
