"""The origin that a path stands for."""

from pathlib import Path

from data_prep.sources.open import open_source
from dist_train.data.tar_folder import is_compressed_tar, is_tar, tars_in
from dist_train.errors import UserError
from launch.embed.origins import OnePhoto, Origin, PhotoOrigin


def open_origin(path: Path, label_key: str = "label") -> Origin:
    """The origin at `path`: a photo, folder of photos, table, `.rec`, tar, or folder of tars.

    Args:
        path: the source.
        label_key: key of the label in the `.json` of shards that have no `.cls`.

    Raises:
        UserError: there is nothing at `path`.
    """
    from launch.embed.shards import ShardOrigin

    path = path.absolute()
    if is_tar(path) or (path.is_dir() and tars_in(path) and not (path / "train.rec").is_file()):
        return ShardOrigin(path, label_key)
    if is_compressed_tar(path):
        raise UserError(f"source {path}: is compressed, and its files cannot be read by their place; decompress it")
    if path.is_dir() or path.suffix in (".rec", ".csv", ".tsv", ".parquet"):
        return PhotoOrigin(open_source(path))
    if not path.exists():
        raise UserError(f"source {path}: not there; expected a photo, a folder of photos, shards, a .rec or a table")
    return PhotoOrigin(OnePhoto(path=path))
