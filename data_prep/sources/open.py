"""The source that a path stands for."""

from pathlib import Path

from data_prep.sources.base import Source
from data_prep.sources.folder import FolderSource
from dist_train.data.tar_folder import is_tar, tars_in
from dist_train.errors import UserError


def open_source(path: Path, path_column: str = "path", identity_column: str = "identity") -> Source:
    """The source at `path`: a `.rec`, a table, a tar, a folder of tars or a folder of identities.

    Raises:
        UserError: there is nothing at `path`, or nothing of a known kind.
    """
    from data_prep.sources.archives import RecSource, TarSource
    from data_prep.sources.tables import SUFFIXES, TableSource

    path = path.absolute()
    if path.is_dir():
        tars = tars_in(path)
        if (path / "train.rec").is_file():
            if tars:
                raise UserError(f"source {path}: holds both train.rec and {tars[0].name}: name one of them")
            return RecSource(path=path / "train.rec")
        return TarSource(path=path) if tars else FolderSource(path=path)
    if not path.exists():
        raise UserError(f"source {path}: not there")
    if path.suffix == ".rec":
        return RecSource(path=path)
    if is_tar(path):
        return TarSource(path=path)
    if path.suffix in SUFFIXES:
        return TableSource(path=path, path_column=path_column, identity_column=identity_column)
    raise UserError(
        f"source {path}: of no known kind; expected a folder of identities, a .rec, .tar, a folder of .tar, "
        "a .csv, .tsv or .parquet"
    )
