"""Samples by number out of one or several sets, whose shards are opened as they are needed."""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dist_train.data.config import DataConfig
from dist_train.data.foreign import write_index
from dist_train.data.manifest import Manifest
from dist_train.data.remote import CachePolicy, ShardCache, cache_policy, is_remote
from dist_train.data.several_labels import further_labels
from dist_train.data.shards import UNLABELLED, BadSampleError, OpenShard, RawSample
from dist_train.errors import UserError


class ImageSet(NamedTuple):
    """A set as the reader sees it.

    Attributes:
        path: directory or address.
        manifest: what is in it.
        first_label: added to its labels.
        labelled: whether labels are read; else each is -1.
    """

    path: str
    manifest: Manifest
    first_label: int = 0
    labelled: bool = True


class SampleReader:
    """Reads samples of `sets`, numbered through all of them by shard and sample.

    At most `open_shards` shards are open; the one unused for longest is closed first. Where samples have up to
    `most_labels` > 1 labels, further ones are read from their `.json`.
    """

    def __init__(
        self,
        sets: Sequence[ImageSet],
        label_key: str,
        open_shards: int,
        policy: CachePolicy | None = None,
        most_labels: int = 1,
    ) -> None:
        self._shards = [(number, each, shard) for number, each in enumerate(sets) for shard in each.manifest.shards]
        policy = policy or cache_policy(DataConfig(path=sets[0].path))
        self._caches = {each.path: ShardCache(each.path, policy) for each in sets if is_remote(each.path)}
        self._label_key = label_key
        self._limit = open_shards
        self._most_labels = most_labels
        # A shard that cannot be opened is remembered as the reason, so that its samples do not all try again.
        self._open: OrderedDict[int, OpenShard | BadSampleError] = OrderedDict()

    def read(self, shard: int, sample: int, with_record: bool = False) -> RawSample:
        """Read a sample.

        Raises:
            BadSampleError: it cannot be used.
        """
        number, source, _ = self._shards[shard]
        several = self._most_labels > 1 and source.labelled
        raw = self._get(shard).read(sample, self._label_key if source.labelled else None, with_record or several)
        further = further_labels(raw, self._most_labels) if several else ()
        for each in (raw.label, *further):
            if each >= source.manifest.num_classes:
                raise BadSampleError(f"label {each}, but the set has {source.manifest.num_classes} classes")
        label = raw.label + source.first_label if source.labelled else UNLABELLED
        further = tuple(each + source.first_label for each in further)
        return raw._replace(label=label, set_px=source.manifest.image_size, source=number, further=further)

    def name(self, shard: int) -> str:
        """Where a shard is, for messages."""
        _, source, entry = self._shards[shard]
        return f"{source.path.rstrip('/')}/{entry.name}"

    def key(self, shard: int, sample: int) -> str:
        """Name of a sample, for messages."""
        try:
            return self._get(shard).key(sample)
        except BadSampleError:
            return f"#{sample}"

    def is_open(self, shard: int) -> bool:
        """Whether a shard could be opened, so that a bad sample in it is the sample's own fault."""
        return isinstance(self._open.get(shard), OpenShard)

    def _get(self, number: int) -> OpenShard:
        found = self._open.get(number)
        if found is None:
            found = self._open[number] = self._try_open(number)
            if len(self._open) > self._limit:
                _, oldest = self._open.popitem(last=False)
                if isinstance(oldest, OpenShard):
                    oldest.close()
        else:
            self._open.move_to_end(number)
        if isinstance(found, BadSampleError):
            raise found
        return found

    def _try_open(self, number: int) -> OpenShard | BadSampleError:
        _, _, shard = self._shards[number]
        try:
            path = self.fetch(number)
            index = path.with_suffix(".idx")
            if not index.exists() and path.exists():
                write_index(path, index)
            return OpenShard(path, index, shard)
        except BadSampleError as error:
            return error
        except UserError as error:
            return BadSampleError(str(error))
        except OSError as error:
            return BadSampleError(f"shard {self.name(number)}: no index, and none can be written: {error.strerror}")

    def fetch(self, number: int) -> Path:
        """Local path of a shard; one behind an address is downloaded if need be.

        Raises:
            BadSampleError: the shard is gone, or is not what the manifest says.
            WorkError: the server cannot be reached, or the disk is full.
        """
        _, source, shard = self._shards[number]
        cache = self._caches.get(source.path)
        return Path(source.path) / shard.name if cache is None else cache.fetch(shard)

    def stop(self) -> None:
        """Break off what other threads download by this reader, and begin no more downloads."""
        for cache in self._caches.values():
            cache.stop()

    def close(self) -> None:
        """Close all shards."""
        for each in self._open.values():
            if isinstance(each, OpenShard):
                each.close()
        self._open.clear()
