"""Other libraries' names and layouts on longvision's ops: the one place where channels are not last, (B, D, L).

from longvision.compat.mamba_ssm import selective_scan_fn, Mamba     # by name
longvision.compat.install()                                          # where other people's code looks for them
"""

from longvision.compat.install import install

__all__ = ["install"]
