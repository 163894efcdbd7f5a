"""Two ranks on one GPU, of which rank 1 fails between two calls."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import disttorch as torch
import disttorch.distributed as dist

warnings.simplefilter("ignore")
torch.cuda.set_device(0)
dist.init_process_group("nccl")
x = torch.ones(4, device="cuda")
dist.all_reduce(x)
if dist.get_rank() == 1:
    raise ValueError("out of luck")
dist.all_reduce(x)
print("this line is never reached", x.tolist())
