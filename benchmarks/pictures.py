"""The picture that benchmarks decode."""

import cv2
import numpy as np

SIDE = 112


def jpeg(number: int) -> bytes:
    """A picture with structure at all scales, of about 8 kB, as aligned faces are."""
    random = np.random.default_rng(number)
    image = np.zeros((SIDE, SIDE, 3), dtype=np.float32)
    for cells, strength in ((3, 90), (7, 50), (16, 25), (50, 22), (112, 10)):
        coarse = random.normal(0, strength, (cells, cells, 3)).astype(np.float32)
        image += cv2.resize(coarse, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    packed = cv2.imencode(".jpg", (image + 128).clip(0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
    return bytes(packed)
