"""Whether a step may change anything: numbers that must be finite, on a GPU read by the host a step later."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_train.errors import NonFiniteError

LATE_ON = frozenset({"cuda"})
"""Types of devices that work off a queue, so that a host that reads what they have computed waits for all of it."""

Refusal = Callable[[NDArray[np.bool_]], NonFiniteError]
"""From a check's answers on the host, of which some are false, to what is wrong."""


def reads_late(device: torch.device) -> bool:
    """Whether a host had better read what `device` has computed a step later."""
    return device.type in LATE_ON


class Verdict:
    """Collects the checks of a step.

    At once, as it begins, a check that fails raises. Late, what moves in the step is moved by `proceed`, on the device
    and without the host, which asks the `Ruling` when the device is long past it. All ranks make the same checks of
    the same numbers, so they come to the same verdict.

    Args:
        device: where the numbers are.

    Attributes:
        late: the host reads later; set before the first step, where all that moves is moved by `proceed`.
    """

    def __init__(self, device: torch.device) -> None:
        self.late = False
        self._device = device
        self._checks: list[tuple[Tensor, Refusal]] = []
        self._proceed: Tensor | None = None

    @property
    def proceed(self) -> Tensor | None:
        """[] bool on the device: all checks since the last ruling hold; None where they are read at once."""
        if self.late and self._proceed is None:
            self._proceed = torch.ones((), dtype=torch.bool, device=self._device)
        return self._proceed

    def check(self, finite: Tensor, refusal: Refusal) -> None:
        """Refuse the step unless all of `finite`, bool of any shape, are true; equal on all ranks.

        Args:
            finite: on the device; not changed afterwards.
            refusal: says what is wrong.

        Raises:
            NonFiniteError: as `refusal` has it, on all ranks, where checks are read at once.
        """
        proceed = self.proceed
        if proceed is None:
            found = finite.cpu().numpy()
            if not found.all():
                raise refusal(found)
            return
        self._proceed = proceed & finite.all()
        self._checks.append((finite, refusal))

    def rule(self) -> "Ruling":
        """The step's checks are over, and the next ones are another step's."""
        ruling = Ruling(self.proceed, self._checks)
        self._checks, self._proceed = [], None
        return ruling


class Ruling:
    """What a step's checks came to, on its way to the host.

    Args:
        proceed: [] bool on the device; None: nothing was refused.
        checks: with what they say where they fail, in their order.
    """

    def __init__(self, proceed: Tensor | None, checks: list[tuple[Tensor, Refusal]]) -> None:
        self._checks = checks
        self._host = proceed
        self._ready: torch.cuda.Event | None = None
        if proceed is not None and proceed.device.type == "cuda":
            self._host = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(proceed, non_blocking=True)
            self._ready = torch.cuda.Event(blocking=True)
            self._ready.record()

    def refusal(self) -> NonFiniteError | None:
        """What was wrong first; None where the step went through. Waits until the device is past the step."""
        if self._ready is not None:
            self._ready.synchronize()
        if self._host is None or self._host:
            return None
        found = ((finite.cpu().numpy(), refusal) for finite, refusal in self._checks)
        return next(refusal(finite) for finite, refusal in found if not finite.all())
