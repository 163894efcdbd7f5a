"""Arrays in GPU memory, from GPU to GPU.

```
group.py      NCCLGroup: streams, events, order, checks, the end of a rank
calls.py      the calls of a group as NCCL's operations
work.py       handles of operations in a stream, and the thread that watches over them
binding.py    the few functions of NCCL that are used: nccl4py first, CuPy's binding otherwise
cuda_ipc.py   the same functions between ranks that share a GPU
```
"""

from .group import NCCLGroup, connect

__all__ = ["NCCLGroup", "connect"]
