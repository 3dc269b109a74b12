"""Limits of a service: what one request, one client and all together may take."""

from typing import NamedTuple


class Limits(NamedTuple):
    """What is refused beyond.

    Attributes:
        request_bytes: of a request's body.
        photo_pixels: of a photo, by its header.
        faces: of a photo; of more the surest are answered.
        waiting: photos that wait for the model.
        request_s: from a request's head to its answer, slow senders included.
        connections: open at a time.
        batch: photos in one pass.
        batch_wait_s: how long a photo waits for others.
    """

    request_bytes: int = 10 << 20
    photo_pixels: int = 25_000_000
    faces: int = 50
    waiting: int = 64
    request_s: float = 30.0
    connections: int = 256
    batch: int = 16
    batch_wait_s: float = 0.002

    @property
    def held_bytes(self) -> int:
        """Bodies in memory, of all requests together."""
        return max(256 << 20, 4 * self.request_bytes)
