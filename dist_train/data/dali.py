"""Decode and augment with DALI: on the GPU where there is one, by the same order and parameters as OpenCV."""

import logging
import time
from collections import deque
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from functools import partial
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import fn, pipeline_def
from nvidia.dali.types import DALIDataType, DALIImageType, DALIInterpType

from dist_train.data.assemble import Assembler, BatchPlan
from dist_train.data.augment import Augmentation, pixel_maps
from dist_train.data.bad_samples import BadSample
from dist_train.data.config import AugmentConfig
from dist_train.data.counters import Ints
from dist_train.data.exchange import positions_of
from dist_train.data.opencv import ERASED, check_square, decode
from dist_train.data.pictures import Pixels
from dist_train.data.pool import Finished, second
from dist_train.data.several_labels import empty_labels, put_labels
from dist_train.data.shards import RawSample
from dist_train.errors import WorkError
from dist_train.runtime.daemons import Daemons

log = logging.getLogger(__name__)

_THREADS = 4  # of DALI; on a GPU they only parse and copy
_GRACE_S = 5.0  # for the thread that reads shards to end


class _Gathered(NamedTuple):
    """A batch as it goes into DALI."""

    encoded: list[Pixels]
    labels: Ints
    positions: Ints
    sources: Ints
    bad: list[BadSample]
    inputs: dict[str, NDArray[Any]]
    samples: set[tuple[int, int]]


class DaliProducer:
    """Makes batches with a DALI pipeline; a thread reads shards ahead of it.

    Pictures that DALI may treat otherwise than OpenCV (anything but three-channel JPEG) are decoded by OpenCV and
    handed on without loss, so that backends agree on which samples are bad. A batch that DALI fails on is made by
    OpenCV.
    """

    def __init__(self, plan: BatchPlan, batch_size: int, device: torch.device, timeout_s: float) -> None:
        self._plan = plan
        self._batch_size = batch_size
        self._device = device
        self._timeout_s = timeout_s
        self._depth = plan.config.prefetch
        self._assembler = Assembler(plan)
        self._reader = Daemons(1, "shards")
        self._asked: deque[Future[_Gathered]] = deque()
        self._running: deque[_Gathered] = deque()
        self._difficult: set[tuple[int, int]] = set()
        self._start_pipeline()

    def _start_pipeline(self) -> None:
        self._pipeline = _make_pipeline(
            self._plan.config.augment,
            self._plan.image_size,
            self._device.type == "cuda",
            self._plan.views,
            batch_size=self._batch_size,
            num_threads=_THREADS,
            device_id=(self._device.index or 0) if self._device.type == "cuda" else None,
            prefetch_queue_depth=1,  # then a call of schedule_run is one run, and this class says how many are ahead
        )
        self._pipeline.build()

    def submit(self, first: int) -> None:
        """Ask for the batch whose first position is `first`."""
        self._asked.append(self._reader.submit(partial(self._gather, first)))

    def collect(self) -> Finished:
        """Wait for the batch that was asked for first, among those not collected yet.

        Raises:
            WorkError: reading failed, or took longer than the time limit.
        """
        if not self._running:
            self._schedule(self._wait(self._asked.popleft()))
        # The pipeline works on further batches, as far as they are read, while this one is waited for.
        while self._asked and len(self._running) < self._depth and self._asked[0].done():
            self._schedule(self._wait(self._asked.popleft()))
        batch = self._running.popleft()
        # On a GPU the outputs are bound to torch's stream: neither side waits for the other on the host.
        stream = torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None
        try:
            outputs = self._pipeline.share_outputs(cuda_stream=stream)
        except RuntimeError as error:
            return self._fall_back(batch, error)
        # uint8 [B, 3, S, S] each; they keep DALI's buffers alive
        images, *others = (torch.from_dlpack(output.as_tensor()) for output in outputs)
        self._pipeline.release_outputs()
        return Finished(images, batch.labels, batch.positions, batch.sources, batch.bad, others[0] if others else None)

    def _wait(self, future: "Future[_Gathered]") -> _Gathered:
        begin = time.monotonic()
        try:
            return future.result(self._timeout_s)
        except FutureTimeoutError:
            raise WorkError(
                f"no batch within data.timeout_s={self._timeout_s:g} s: waited {time.monotonic() - begin:.0f} s for "
                f"the thread that reads shards of {', '.join(each.path for each in self._plan.sets)}"
            ) from None

    def _schedule(self, batch: _Gathered) -> None:
        self._pipeline.feed_input("encoded", batch.encoded)
        for name, values in batch.inputs.items():
            self._pipeline.feed_input(name, values)
        self._pipeline.schedule_run()
        self._running.append(batch)

    def _fall_back(self, batch: _Gathered, error: RuntimeError) -> Finished:
        log.warning(
            "DALI cannot make the batch at position %d, OpenCV makes it: %s",
            batch.positions[0],
            str(error).split("\n")[0],
        )
        self._difficult |= batch.samples
        # A pipeline that failed does not go on; what it was given is given to a new one.
        self._start_pipeline()
        rest, self._running = self._running, deque()
        for each in rest:
            self._schedule(each)
        size_px = self._plan.image_size
        images = np.empty((self._plan.views, self._batch_size, 3, size_px, size_px), dtype=np.uint8)
        labels, sources = self._empty_labels(), np.empty(self._batch_size, dtype=np.int64)
        assembler = Assembler(self._plan)  # the thread that reads ahead uses the other one
        bad = assembler.fill(batch.positions, images, labels, sources)
        assembler.close()
        return Finished(images[0], labels, batch.positions, sources, bad, second(images))

    def _gather(self, first: int) -> _Gathered:
        positions = positions_of(first, 0, self._batch_size)
        encoded: list[Pixels] = [np.empty(0, dtype=np.uint8)] * self._batch_size
        labels = self._empty_labels()
        sides, sources = (np.empty(self._batch_size, dtype=np.int64) for _ in range(2))
        samples = set()

        def put(row: int, shard: int, sample: int) -> None:
            raw = self._assembler.reader.read(shard, sample)
            encoded[row], sides[row] = _prepare(raw, (shard, sample) in self._difficult)
            put_labels(labels, row, raw)
            sources[row] = raw.source
            samples.add((shard, sample))

        places = self._assembler.order.locate(positions)
        bad = self._assembler.walk(positions, places, put)
        inputs: dict[str, NDArray[Any]] = {}
        for view in range(self._plan.views):
            parameters = self._assembler.draw(places, view)
            inputs |= _inputs(self._plan.config.augment, parameters, sides, self._plan.image_size, view)
        return _Gathered(encoded, labels, positions, sources, bad, inputs, samples)

    def _empty_labels(self) -> Ints:
        return empty_labels(self._batch_size, self._plan.config.labels_per_sample)

    def close(self) -> None:
        """Give back the pipeline and the shards; safe to repeat."""
        for batch in self._asked:
            batch.cancel()
        self._assembler.reader.stop()
        self._reader.submit(self._assembler.close)  # by the thread, which may be reading them
        self._reader.close(_GRACE_S)
        self._asked.clear()
        self._running.clear()


def _prepare(raw: RawSample, difficult: bool) -> tuple[Pixels, int]:
    """What to give to DALI for a sample's picture, and the picture's side in pixels."""
    header = check_square(raw.image, raw.set_px)
    if difficult or header.kind != "JPEG" or (header.bits, header.channels) != (8, 3):
        picture = decode(raw.image, raw.set_px)
        _, packed = cv2.imencode(".png", picture, [cv2.IMWRITE_PNG_COMPRESSION, 0])
        return packed.reshape(-1), picture.shape[0]
    return raw.image, header.width


def _inputs(config: AugmentConfig, rows: Augmentation, sides: Ints, size_px: int, view: int) -> dict[str, NDArray[Any]]:
    """The parameters of a view in DALI's terms, by the names of the pipeline's inputs; each [n, ...]."""
    inputs: dict[str, NDArray[Any]] = {
        "maps": pixel_maps(rows, sides, centre=0).astype(np.float32),  # [n, 2, 3]
        "sizes": np.repeat(rows.side[:, None], 2, axis=1).astype(np.float32),  # [n, 2]
    }
    if config.blur:
        # OpenCV's window for 8-bit pictures; a window of one pixel leaves a picture as it is.
        windows = np.where(rows.sigma > 0, np.rint(rows.sigma * 6 + 1).astype(np.int32) | 1, 1)
        inputs["windows"] = windows.astype(np.int32)
        inputs["sigmas"] = np.where(rows.sigma > 0, rows.sigma, 1.0).astype(np.float32)
    if config.jpeg:
        inputs["qualities"] = rows.quality.astype(np.int32)
    if _has_colour(config):
        inputs["colours"] = rows.colour.astype(np.float32)  # [n, 3, 3]
        inputs["offsets"] = np.repeat(rows.offset[:, None], 3, axis=1).astype(np.float32)  # [n, 3]
    if config.erase:
        inputs["anchors"] = rows.box[:, 1::-1].astype(np.float32)  # [n, 2], top and left
        inputs["shapes"] = (rows.box[:, 3:1:-1] - rows.box[:, 1::-1]).astype(np.float32)  # [n, 2]
    return {f"{name}{view}": values for name, values in inputs.items()}


def _has_colour(config: AugmentConfig) -> bool:
    return bool(config.brightness or config.contrast or config.saturation or config.grey)


@pipeline_def(enable_conditionals=True)
def _make_pipeline(config: AugmentConfig, size_px: int, gpu: bool, views: int) -> Any:  # noqa: ANN401  a DataNode has no stubs
    encoded = fn.external_source(name="encoded", dtype=DALIDataType.UINT8, ndim=1)
    picture = fn.decoders.image(encoded, device="mixed" if gpu else "cpu", output_type=DALIImageType.RGB)
    return tuple(_view(picture, config, size_px, view) for view in range(views))


def _view(picture: Any, config: AugmentConfig, size_px: int, view: int) -> Any:  # noqa: ANN401  a DataNode has no stubs
    """A view of a decoded picture, by the parameters of that view."""
    maps = fn.external_source(name=f"maps{view}", dtype=DALIDataType.FLOAT, ndim=2)
    sizes = fn.external_source(name=f"sizes{view}", dtype=DALIDataType.FLOAT, ndim=1)
    picture = fn.warp_affine(picture, matrix=maps, size=sizes, fill_value=0)
    if config.low_resolution:
        picture = fn.resize(
            picture, resize_x=size_px, resize_y=size_px, interp_type=DALIInterpType.INTERP_LINEAR, antialias=False
        )
    if config.blur:
        sigmas = fn.external_source(name=f"sigmas{view}", dtype=DALIDataType.FLOAT, ndim=0)
        windows = fn.external_source(name=f"windows{view}", dtype=DALIDataType.INT32, ndim=0)
        picture = fn.gaussian_blur(picture, sigma=sigmas, window_size=windows)
    if config.jpeg:
        qualities = fn.external_source(name=f"qualities{view}", dtype=DALIDataType.INT32, ndim=0)
        if qualities > 0:
            picture = fn.jpeg_compression_distortion(picture, quality=qualities)
    if _has_colour(config):
        colours = fn.external_source(name=f"colours{view}", dtype=DALIDataType.FLOAT, ndim=2)
        offsets = fn.external_source(name=f"offsets{view}", dtype=DALIDataType.FLOAT, ndim=1)
        picture = fn.coord_transform(picture, M=colours, T=offsets, dtype=DALIDataType.UINT8)
    if config.erase:
        anchors = fn.external_source(name=f"anchors{view}", dtype=DALIDataType.FLOAT, ndim=1)
        shapes = fn.external_source(name=f"shapes{view}", dtype=DALIDataType.FLOAT, ndim=1)
        picture = fn.erase(picture, anchor=anchors, shape=shapes, axis_names="HW", fill_value=ERASED)
    return fn.transpose(picture, perm=[2, 0, 1])  # [H, W, 3] -> [3, H, W]
