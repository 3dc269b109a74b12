"""The table of identities of a set, in a directory or behind an address."""

import tempfile
from pathlib import Path

import pyarrow as pa

from dist_train.data.identities import read_identities
from dist_train.data.manifest import IDENTITIES_NAME
from dist_train.data.reader import ImageSet
from dist_train.data.remote import Remote, is_remote
from dist_train.errors import UserError

# Of a table behind an address: most bytes of any, and of one for each identity; its other columns come, too.
_MOST_BYTES = 8 << 30
_ROW_BYTES = 4 << 10
_ALWAYS_BYTES = 64 << 20


def identities_of(source: ImageSet, column: str, retries: int) -> pa.Table | None:
    """Columns `label` and `column` of a set's table, as `read_identities` gives them; None where it has no table.

    Args:
        source: the set, in a directory or behind an address.
        column: `name` or `count`.
        retries: further tries after a failure of its server.

    Raises:
        UserError: the table is damaged or does not fit.
        WorkError: the server cannot be reached.
    """
    classes = source.manifest.num_classes
    if not is_remote(source.path):
        path = Path(source.path) / IDENTITIES_NAME
        return read_identities(path, column, classes) if path.exists() else None
    address = f"{source.path.rstrip('/')}/{IDENTITIES_NAME}"
    with tempfile.TemporaryDirectory(prefix="headcount-identities-") as folder:
        path = Path(folder) / IDENTITIES_NAME
        limit = min(_MOST_BYTES, _ALWAYS_BYTES + _ROW_BYTES * classes)
        try:
            complaint = Remote(source.path, retries).download(IDENTITIES_NAME, path, limit, lambda _: None)
        except FileNotFoundError:
            return None
        if complaint is not None:
            raise UserError(f"{address}: {complaint}; is it such a table?")
        return read_identities(path, column, classes, address)
