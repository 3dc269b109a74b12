"""Where class centers and their optimizer state live: device memory, host memory or memory-mapped files.

A table has one row per class of this rank. A step works on a `Lease`: the chosen classes' rows of every table,
read and written in blocks as float32. From tables on the computing device a lease reads and writes the table
itself; from others it works on a staged copy, fetched and written back by one worker thread in order, so that a
fetch overlaps the backbone's forward and a write-back the next step's loading.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from dist_train.errors import UserError
from dist_train.head.mapped_table import MappedTables
from dist_train.head.rounding import StochasticRounder
from dist_train.head.snapshot import TableSnapshot
from dist_train.head.workspace import Workspace
from dist_train.runtime.to_device import to_device

_INIT_CLASSES = 1024  # classes whose initial rows come from one generator; part of what a seed means


@dataclass(frozen=True)
class TableSpec:
    """One table: its name, numbers per class, stored type. All but "centers" start with zeros."""

    name: str
    width: int
    dtype: torch.dtype


def fill_normal(table: Tensor, start: int, seed: int, std: float) -> None:
    """Normal initial rows of classes [start, start + n); class c's row depends on (seed, c) alone.

    Args:
        table: [n, width], any float type, on any device.
        start: class of the first row.
        seed: of the run.
        std: standard deviation.
    """
    count, width = table.shape
    block = torch.empty(_INIT_CLASSES, width)
    generator = torch.Generator()
    stop = start + count
    for number in range(start // _INIT_CLASSES, -(-stop // _INIT_CLASSES)):
        first = number * _INIT_CLASSES
        low, high = max(first, start), min(first + _INIT_CLASSES, stop)
        generator.manual_seed((seed * 0x9E3779B97F4A7C15 + number * 0xBF58476D1CE4E5B9) % (1 << 63))
        block.normal_(0.0, std, generator=generator)
        table[low - start : high - start].copy_(block[low - first : high - first])


class RowStore:
    """Tables with one row per class of this rank, and leases on chosen rows.

    Args:
        specs: the tables.
        num_classes: rows n of every table.
        device: where the head computes.
        storage: "device", "host" or "mmap".
        directory: of memory-mapped files, which the store holds until it is closed.
        owner: (rank, world_size), part of the files' names.
        rounder: writes bfloat16 tables.

    Raises:
        UserError: another run holds the directory, a file of another shape exists, or the disk has no room for the
            files.
    """

    def __init__(
        self,
        specs: list[TableSpec],
        num_classes: int,
        device: torch.device,
        storage: str,
        directory: Path | None,
        owner: tuple[int, int],
        rounder: StochasticRounder,
    ) -> None:
        self.num_classes = num_classes
        self.device = device
        self.staged = storage != "device"
        self.specs = {spec.name: spec for spec in specs}
        self.rounder = rounder
        self.workspace = Workspace(device)
        self.tables: dict[str, Tensor] = {}
        self._snapshots: dict[str, TableSnapshot] = {}
        self._idle: list[dict[str, Tensor]] = []
        self._copies: dict[str, Tensor] = {}  # where snapshots of mapped tables go
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="row-store") if self.staged else None
        self._mapped: MappedTables | None = None
        if storage == "mmap":
            if directory is None:
                raise UserError("head.storage=mmap needs head.storage_dir")
            self._mapped = MappedTables(directory, self.specs, owner)
        try:
            for spec in specs:
                self._open(spec)
        except BaseException:
            self.close()
            raise

    def _open(self, spec: TableSpec) -> None:
        shape = (self.num_classes, spec.width)
        if self._mapped is not None:
            self.tables[spec.name] = self._mapped.open(spec.name, shape, spec.dtype)
            self._copies[spec.name] = self._mapped.unnamed(spec.name, shape, spec.dtype)
            return
        # A GPU sees staging buffers alone, so rows on the host are not pinned: torch pins powers of two.
        where = torch.device("cpu") if self.staged else self.device
        # Written now, not at first use: a lack of memory shows before training starts.
        self.tables[spec.name] = torch.empty(shape, dtype=spec.dtype, device=where).zero_()

    def lease(self, classes: Tensor | None) -> "Lease":
        """The rows of `classes` (sorted local ids on the host; None: all). Staged rows are fetched meanwhile."""
        if not self.staged:
            on_device = None if classes is None else to_device(classes, self.device)
            return Lease(self, self.num_classes if classes is None else len(classes), on_device)
        count = self.num_classes if classes is None else len(classes)
        host = self._idle.pop() if self._idle else {}
        return StagedLease(self, count, classes, host)

    def submit(self, work: Callable[[], None]) -> "Future[None]":
        """Queue work behind all fetches and write-backs queued before."""
        if self._worker is None:
            raise RuntimeError("work queued in a store that is not staged")
        return self._worker.submit(work)

    def put_back(self, host: dict[str, Tensor]) -> None:
        """Give a lease's staging buffers to the next lease."""
        self._idle.append(host)

    def put(self, name: str, classes: Tensor, values: Tensor) -> None:
        """Write `values` [n, width] as the rows of `classes` [n], distinct local ids, of a table.

        Of another type than the table's they are rounded as a step rounds them, and scratch afterwards. Nothing else
        may be reading or writing rows.
        """
        table = self.tables[name]
        if table.dtype == torch.bfloat16 and values.dtype != torch.bfloat16:
            values = values.to(self.device, torch.float32)
            values = self.rounder.round(values, torch.empty_like(values, dtype=table.dtype))
        table.index_copy_(0, classes.to(table.device), values.to(table.device, table.dtype))

    def flush(self) -> None:
        """Wait until every write-back has reached the tables."""
        if self._worker is not None:
            self._worker.submit(lambda: None).result()

    def snapshot(self) -> dict[str, TableSnapshot]:
        """Begin a copy of every table as it stands now; the next call or `end_snapshot` ends it."""
        self.flush()
        self._snapshots = {name: TableSnapshot(table, self._copies.get(name)) for name, table in self.tables.items()}
        return self._snapshots

    @property
    def snapshotting(self) -> bool:
        """Whether a snapshot has rows left to copy, which must be copied before they change."""
        return any(not snapshot.complete for snapshot in self._snapshots.values())

    def end_snapshot(self) -> None:
        """Free the copies; rows change without being copied again."""
        self._snapshots = {}

    def before_change(self, name: str, rows: Tensor | slice) -> None:
        """Copy these rows of a table to the snapshot, if there is one; whoever writes rows calls this first."""
        snapshot = self._snapshots.get(name)
        if snapshot is not None:
            snapshot.keep(torch.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows)

    def close(self) -> None:
        """Finish write-backs, stop the worker and let other runs have the directory."""
        if self._worker is not None:
            self._worker.shutdown(wait=True)
        if self._mapped is not None:
            self._mapped.close()


class Lease:
    """Chosen rows of a store's tables, read from and written to the tables themselves.

    Attributes:
        count: number k of chosen classes.
    """

    def __init__(self, store: RowStore, count: int, classes: Tensor | None) -> None:
        self.store = store
        self.count = count
        self.classes = classes

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of the chosen ones as float32 [stop - start, width].

        Valid until the next read of this table. It may be the table's own memory: change it only to `write` it.
        """
        table = self.store.tables[name]
        shape = (stop - start, table.shape[1])
        if self.classes is None:
            rows = table[start:stop]
            if self.store.snapshotting:  # callers change the block in place before `write` can copy it
                rows = self.store.workspace.get(name, shape, table.dtype).copy_(rows)
        else:
            rows = self.store.workspace.get(name, shape, table.dtype)
            torch.index_select(table, 0, self.classes[start:stop], out=rows)
        return self._widen(name, rows)

    def pick(self, name: str, positions: Tensor) -> Tensor:
        """A float32 copy of the chosen rows at `positions` [T] -> [T, width]."""
        index = positions if self.classes is None else self.classes[positions]
        return self.store.tables[name].index_select(0, index).float()

    def write(self, name: str, start: int, stop: int, rows: Tensor) -> None:
        """Store changed rows that `read` gave; `rows` is scratch afterwards."""
        table = self.store.tables[name]
        self.store.before_change(name, slice(start, stop) if self.classes is None else self.classes[start:stop])
        if self.classes is None:
            self._narrow(rows, table[start:stop])
        else:
            if table.dtype != torch.float32:
                rows = self._narrow(rows, self.store.workspace.get(name, tuple(rows.shape), table.dtype))
            table.index_copy_(0, self.classes[start:stop], rows)

    def places(self, name: str, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """A table and the places [stop - start] in it of chosen rows [start, stop), to be changed in place.

        Without places the rows are the table's own, from the first to the last.
        """
        table = self.store.tables[name]
        rows = slice(start, stop) if self.classes is None else self.classes[start:stop]
        self.store.before_change(name, rows)
        return (table[rows], None) if isinstance(rows, slice) else (table, rows)

    def commit(self) -> None:
        """Write the staged rows back; nothing is written by the lease afterwards."""

    def release(self) -> None:
        """Release the lease without writing anything back."""

    def exchanged(self, classes: Tensor) -> "Lease":
        """A lease on other classes, sorted local ids on the host, for this one, which is released."""
        self.release()
        return self.store.lease(classes)

    def _widen(self, name: str, rows: Tensor) -> Tensor:
        if rows.dtype == torch.float32:
            return rows
        return self.store.workspace.get(name, tuple(rows.shape)).copy_(rows)

    def _narrow(self, rows: Tensor, out: Tensor) -> Tensor:
        if out.dtype != torch.float32:
            return self.store.rounder.round(rows, out)
        return out if out.data_ptr() == rows.data_ptr() else out.copy_(rows)


class StagedLease(Lease):
    """Chosen rows copied to the computing device, written back when committed."""

    def __init__(self, store: RowStore, count: int, classes: Tensor | None, host: dict[str, Tensor]) -> None:
        super().__init__(store, count, None)
        self._rows_of = classes
        self._host = host
        self._near: dict[str, Tensor] | None = None
        self._sent: torch.cuda.Event | None = None  # comes when the device has its copy of the staging buffers
        self._fetched = store.submit(self._fetch)

    def _staging(self, name: str) -> Tensor:
        table = self.store.tables[name]
        size = self.count * table.shape[1]
        buffer = self._host.get(name)
        if buffer is None or buffer.numel() < size:
            buffer = torch.empty(size, dtype=table.dtype, pin_memory=self.store.device.type == "cuda")
            self._host[name] = buffer
        return buffer[:size].view(self.count, table.shape[1])

    def _fetch(self) -> None:
        for name, table in self.store.tables.items():
            if self._rows_of is None:
                self._staging(name).copy_(table)
            else:
                torch.index_select(table, 0, self._rows_of, out=self._staging(name))

    def _rows(self, table: str) -> Tensor:
        if self._near is None:
            self._fetched.result()
            device = self.store.device
            self._near = {name: to_device(self._staging(name), device) for name in self.store.tables}
            self._sent = self._queued()
        return self._near[table]

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """See `Lease.read`."""
        return self._widen(name, self._rows(name)[start:stop])

    def pick(self, name: str, positions: Tensor) -> Tensor:
        """See `Lease.pick`."""
        return self._rows(name).index_select(0, positions).float()

    def write(self, name: str, start: int, stop: int, rows: Tensor) -> None:
        """See `Lease.write`."""
        self._narrow(rows, self._rows(name)[start:stop])

    def places(self, name: str, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """See `Lease.places`."""
        return self._rows(name)[start:stop], None

    def _queued(self) -> "torch.cuda.Event | None":
        """Comes when all is done that a GPU has been given so far; None on a CPU, which does it at once."""
        if self.store.device.type != "cuda":
            return None
        event = torch.cuda.Event()
        event.record()
        return event

    def commit(self) -> None:
        """Queue the write-back; the next fetch is queued behind it."""
        if self.store.device.type == "cuda":
            for name in self.store.tables:
                self._staging(name).copy_(self._rows(name), non_blocking=True)
        self.store.submit(partial(self._write_back, self._queued()))

    def release(self) -> None:
        """Release the lease without writing anything back; its staging buffers are free once they are copied."""
        self.store.submit(partial(self._give_up, self._sent))

    def _give_up(self, sent: "torch.cuda.Event | None") -> None:
        if sent is not None:
            sent.synchronize()
        self.store.put_back(self._host)

    def _write_back(self, ready: "torch.cuda.Event | None") -> None:
        if ready is not None:
            ready.synchronize()
        for name, table in self.store.tables.items():
            self.store.before_change(name, slice(0, self.count) if self._rows_of is None else self._rows_of)
            if self._rows_of is None:
                table.copy_(self._staging(name))
            else:
                table.index_copy_(0, self._rows_of, self._staging(name))
        self.store.put_back(self._host)
