"""Loading tensors out of a checkpoint that anybody may have written: tensors alone, nothing that is called."""

import io
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem

from dist_train.checkpoint.metadata import read_metadata
from dist_train.checkpoint.record import NOT_A_RECORD, STORAGES, FileSlice, check_record, find_numbers
from dist_train.errors import WorkError


def load_tensors(
    state: dict[str, Any], checkpoint: Path, group: dist.ProcessGroup | None = None, *, alone: bool = False
) -> None:
    """Load the tensors of a checkpoint into those of `state`, in place; a collective unless `alone`.

    Args:
        state: nested dicts of tensors or `DTensor`s.
        checkpoint: its directory.
        group: of the ranks that load together.
        alone: this process loads by itself.

    Raises:
        WorkError: the checkpoint names code or files elsewhere, or is damaged.
        Exception, CheckpointException: whatever torch raises where it does not fit.
    """
    dcp.load(state, storage_reader=_Reader(checkpoint), planner=_Planner(), process_group=group, no_dist=alone)


class _Reader(dcp.FileSystemReader):
    """Runs nothing that `.metadata` names, and takes no slice of a file that is more than a tensor by `torch.save`."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__(checkpoint)
        self._checkpoint = checkpoint
        self._error: WorkError | None = None

    def read_metadata(self) -> Metadata:
        """See `StorageReader`."""
        try:
            return read_metadata(self._checkpoint)
        except WorkError as error:  # raised later: DCP logs what is raised here with a traceback, and looks elsewhere
            self._error = error
            return Metadata({}, storage_data={})

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: object, **kwargs: object) -> None:
        """See `StorageReader`."""
        if self._error is not None:
            raise self._error
        super().set_up_storage_reader(metadata, is_coordinator, *args, **kwargs)
        self._tensors = metadata.state_dict_metadata

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> torch.futures.Future[None]:
        """See `StorageReader`. Of tables only the rows that are asked for are read, without a copy in between."""
        left = [item for item in plan.items if not self._read_rows(item, planner)]
        return super().read_data(replace(plan, items=left), planner)

    def _read_rows(self, item: ReadItem, planner: LoadPlanner) -> bool:
        """Read rows of a share of a table into where they belong; False where torch should load it whole.

        Raises:
            WorkError: the file ends before them.
        """
        entry = self._tensors.get(item.storage_index.fqn)
        if not isinstance(entry, TensorStorageMetadata) or entry.properties.dtype not in STORAGES:
            return False
        target = planner.resolve_tensor(item).detach()
        fits = target.dtype == entry.properties.dtype and target.device.type == "cpu" and target.is_contiguous()
        if not fits or target.dim() != 2:
            return False
        share = next(tuple(each.sizes) for each in entry.chunks if each.offsets == item.storage_index.offset)
        if share[1] != target.shape[1]:
            return False
        place = self.storage_data[item.storage_index]
        path = self._checkpoint / place.relative_path
        with path.open("rb", buffering=0) as file:
            try:
                view = FileSlice(cast(io.BufferedIOBase, file), place.offset, place.length)
                numbers = find_numbers(view, place.length, share, target.dtype)
            except NOT_A_RECORD:  # not row after row, or refused there
                return False
            file.seek(place.offset + numbers + item.storage_offsets[0] * share[1] * target.itemsize)
            _fill(target, file, path)
        planner.commit_tensor(item, target)
        return True

    def _slice_file(self, file: IO[bytes], sinfo: Any) -> Any:  # noqa: ANN401 - torch's private class
        view = FileSlice(cast(io.BufferedIOBase, file), sinfo.offset, sinfo.length)
        try:
            check_record(view)
        except NOT_A_RECORD as error:
            place = f"{self._checkpoint / sinfo.relative_path} at byte {sinfo.offset}"
            raise WorkError(f"{place}: {error}; refused, nothing was run") from error
        view.seek(0)
        return view


class _Planner(dcp.DefaultLoadPlanner):
    """Loads tensors only: torch reads anything else with an unpickler that runs what it names."""

    def load_bytes(self, read_item: Any, value: Any) -> None:  # noqa: ANN401 - as in `LoadPlanner`
        """See `LoadPlanner`."""
        raise WorkError(f"{read_item.dest_index.fqn} is not a tensor; refused")


def _fill(target: Tensor, file: io.FileIO, path: Path) -> None:
    """Read the next numbers of a file into a tensor."""
    rest = memoryview(cast(Any, target.view(torch.uint8).numpy())).cast("B")
    while rest:
        count = file.readinto(rest)
        if not count:
            raise WorkError(f"{path} ends at byte {file.tell()}, {len(rest)} bytes too early; take another checkpoint")
        rest = rest[count:]
