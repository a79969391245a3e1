"""One thread for torch: the networks are small, and machines that run tests are busy."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
