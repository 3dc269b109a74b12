"""The way from the host to a device, for which the host does not wait."""

import torch
from torch import Tensor


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """`host`, a tensor on the CPU, on `device`.

    A GPU takes it from pinned memory as it comes to it in its queue: copies of ordinary memory wait for their turn, as
    far as they do not fit in the driver's small buffer. The pinned copy may be dropped at once, since its allocator
    waits for the transfer before it gives the memory out again.
    """
    if device.type != "cuda":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)
