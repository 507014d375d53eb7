"""One thread per test process: pytest-xdist runs several beside each other."""

import torch

torch.set_num_threads(1)
