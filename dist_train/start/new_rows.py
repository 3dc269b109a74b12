"""Rows of identities that are new: the mean embedding of their pictures, as long as the other rows are."""

import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import normalize

from dist_train.backbones import memory_format
from dist_train.data.batch import Transfer
from dist_train.data.opencv import decode
from dist_train.data.shards import BadSampleError, RawSample
from dist_train.errors import WorkError
from dist_train.head import Head
from dist_train.runtime.ranks import Ranks
from dist_train.start.class_pictures import ClassPictures

logger = logging.getLogger(__name__)

_BLOCK_BYTES = 64 << 20  # of sums of embeddings
_SPREAD = 0.1  # length of what sets further centers of a class off from its first, in lengths of that
_DECODERS = min(4, len(os.sched_getaffinity(0)))  # threads; OpenCV decodes outside the interpreter lock
_SAID = 3  # bad pictures in the log


class Model(NamedTuple):
    """A network that embeds pictures.

    Attributes:
        backbone: the network.
        image_size: side of its pictures in pixels.
        batch_size: pictures in a forward pass.
    """

    backbone: nn.Module
    image_size: int
    batch_size: int


class NewRows:
    """Writes the rows of new identities; every rank embeds an equal share of the pictures, whoever owns the rows.

    An identity's center is the sum of the L2-normalised embeddings of its pictures, brought to the mean length of the
    rows that were carried; the network is in evaluation mode, the pictures are as they are. Further centers of a class
    are set off from the first by a tenth of that, in the direction that they had at random. The bias of plain softmax
    is the carried rows' mean. An identity without a picture that can be used keeps its random row.

    Args:
        head: whose rows are written.
        model: embeds.
        pictures: of the classes.
        like: mean length and mean bias of the rows that were carried.
        ranks: this process among the job's.

    Attributes:
        bad_pictures: of this rank's share that were passed over so far.
        left_random: identities of this rank without a picture so far.
    """

    def __init__(
        self, head: Head, model: Model, pictures: ClassPictures, like: tuple[float, float], ranks: Ranks
    ) -> None:
        self._head, self._model, self._pictures, self._ranks = head, model, pictures, ranks
        self._length, self._bias = like
        self._transfer = Transfer(head.device)
        self.bad_pictures = 0
        self.left_random = 0

    def embed(self, classes: NDArray[np.int64]) -> Iterator[Iterator[int]]:
        """Write the rows of `classes` of all ranks, block by block; the stages of `work_off`, whose unit is a picture.

        Raises:
            WorkError: the network's embeddings are not finite, or the pictures' server cannot be reached.
        """
        dim = self._head.embedding_dim
        block = max(1, _BLOCK_BYTES // (4 * dim))
        training = self._model.backbone.training
        self._model.backbone.eval()
        try:
            with ThreadPoolExecutor(_DECODERS) as pool:
                for start in range(0, len(classes), block):
                    some = classes[start : start + block]
                    sums = torch.zeros(len(some), dim, device=self._head.device)
                    yield self._add_share(some, sums, pool)
                    if self._ranks.group is not None:
                        dist.all_reduce(sums, group=self._ranks.group)
                    self._write(some, sums)
        finally:
            self._model.backbone.train(training)

    def _add_share(self, classes: NDArray[np.int64], sums: Tensor, pool: ThreadPoolExecutor) -> Iterator[int]:
        """Add the embeddings of this rank's share of the pictures of `classes` [n] to `sums` [n, D]."""
        size, world_size = self._model.batch_size, self._ranks.world_size
        places, numbers = (np.array_split(each, world_size)[self._ranks.rank] for each in self._pictures.of(classes))
        for low in range(0, len(numbers), size):
            images, good = self._decoded(numbers[low : low + size], pool)
            if len(good):
                index = torch.from_numpy(places[low : low + size][good]).to(self._head.device)
                sums.index_add_(0, index, self._embedded(images, good))
            yield len(numbers[low : low + size])

    def _decoded(
        self, numbers: NDArray[np.int64], pool: ThreadPoolExecutor
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Pictures [m, 3, S, S], red first, of those samples [n] that can be used, and which these are [m]."""
        side = self._model.image_size
        images = np.empty((len(numbers), 3, side, side), dtype=np.uint8)
        raw: list[RawSample | BadSampleError] = []
        for number in numbers.tolist():
            try:
                raw.append(self._pictures.read(number))
            except BadSampleError as error:
                raw.append(error)
        reasons = list(pool.map(_decode_into, raw, images))
        good = np.array([place for place, reason in enumerate(reasons) if reason is None], dtype=np.int64)
        for number, reason in zip(numbers.tolist(), reasons, strict=True):
            if reason is not None:
                self.bad_pictures += 1
                if self.bad_pictures <= _SAID:
                    logger.warning("sample %d of a new identity is passed over: %s", number, reason)
        return images[good], good

    def _embedded(self, images: NDArray[np.uint8], numbers: NDArray[np.int64]) -> Tensor:
        """Unit embeddings [m, D] of pictures [m, 3, S, S]."""
        backbone = self._model.backbone
        batch = self._transfer(images, numbers, numbers, numbers).images.contiguous(
            memory_format=memory_format(backbone)
        )
        with torch.no_grad():
            embeddings = normalize(backbone(batch).float(), dim=1)
        if not torch.isfinite(embeddings).all():
            raise WorkError(
                "start.new_rows=embed: the network that start.backbone gives has embeddings that are not finite; start "
                "from an earlier checkpoint, or give start.new_rows=random"
            )
        return embeddings

    def _write(self, classes: NDArray[np.int64], sums: Tensor) -> None:
        """This rank's rows among those of `classes` [n], from the sums of their embeddings [n, D]."""
        own = (classes >= self._head.start) & (classes < self._head.stop)
        classes, sums = classes[own] - self._head.start, sums[torch.from_numpy(own).to(sums.device)]
        lengths = sums.norm(dim=1)
        known = (lengths > 0).cpu().numpy()
        self.left_random += int(np.count_nonzero(~known))
        if not known.any():
            return
        index = torch.from_numpy(classes[known])
        first = (sums * (self._length / lengths)[:, None])[torch.from_numpy(known).to(sums.device)]  # [m, D]
        table = self._head.tables()["centers"]
        k, dim = self._head.config.centers_per_class, sums.shape[1]
        rows = table[index.to(table.device)].to(sums.device, torch.float32).view(len(index), k, -1)  # random ones
        rows[:, 1:, :dim] = first[:, None] + _SPREAD * self._length * normalize(rows[:, 1:, :dim], dim=2)
        rows[:, 0, :dim] = first
        rows[:, :, dim:] = self._bias
        self._head.write_rows("centers", index, rows.view(len(index), -1))


def _decode_into(raw: RawSample | BadSampleError, out: NDArray[np.uint8]) -> str | None:
    """Put a sample's picture into `out` [3, S, S], red first; why it cannot be used, or None."""
    if isinstance(raw, BadSampleError):
        return str(raw)
    try:
        picture = decode(raw.image, raw.set_px)
    except BadSampleError as error:
        return str(error)
    side = out.shape[1]
    if picture.shape[0] != side:
        kind = cv2.INTER_AREA if picture.shape[0] > side else cv2.INTER_LINEAR
        picture = cv2.resize(picture, (side, side), interpolation=kind)
    cv2.split(picture, (out[2], out[1], out[0]))
    return None
