"""The command `longvision`: parses, calls, prints.

A package of its own beside `longvision`, because importing that one registers models with timm and so loads torch,
which takes seconds: `longvision --help` has to answer at once.
"""
