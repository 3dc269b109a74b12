"""What newer torch calls otherwise than older torch does: the names that the installed one has, and warns of none.

Of collectives the names are kept, not the functions, so that whoever puts another function in torch's place is heard.
"""

import inspect
from typing import Any

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

_SINGLE = hasattr(dist, "all_gather_single")

ALL_GATHER = "all_gather_single" if _SINGLE else "all_gather_into_tensor"
"""The collective of `torch.distributed` that gathers tensors of one size into one tensor."""
REDUCE_SCATTER = "reduce_scatter_single" if _SINGLE else "reduce_scatter_tensor"
"""The collective of `torch.distributed` that adds tensors up and leaves each rank its part."""

_FORWARD = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
OWN_BUFFERS: dict[str, Any] = {"forward_sync_buffers" if _FORWARD else "broadcast_buffers": False}
"""Arguments by which DistributedDataParallel leaves each rank its own buffers in forward passes."""
