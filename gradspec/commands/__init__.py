"""The subcommands of `gradspec`, a file each: frozen dataclasses whose fields are the options and whose docstrings the
help. They import torch, pandas and matplotlib only when they run.
"""
