"""The names of the classes of a run, over all of its sets."""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa

from dist_train.data.config import DataConfig
from dist_train.data.identities import read_identities
from dist_train.data.manifest import IDENTITIES_NAME
from dist_train.data.reader import ImageSet
from dist_train.data.remote import Remote, is_remote
from dist_train.data.sources import open_sources

_MOST_BYTES = 8 << 30  # of a table behind an address: some 400 million names


def class_names(config: DataConfig) -> pa.Table | None:
    """Label and name of the classes over all sets of `config`; None where no set has an `identities.parquet`.

    A class that sets share has the name that the first of them gives it. Classes of a set without the table have none.

    Raises:
        UserError: a set is missing, or its table is damaged or does not fit.
        WorkError: a server cannot be reached.
    """
    sources = open_sources(config.model_copy(update={"check_at_start": False}))
    named = np.zeros(sources.manifest.num_classes, dtype=bool)
    tables = []
    for each in sources.labelled:
        table = _names_of(each, config.retries)
        if table is None:
            continue
        labels = table["label"].to_numpy() + each.first_label
        new = ~named[labels]
        named[labels] = True
        table = pa.table({"label": pa.array(labels), "name": table["name"]})
        tables.append(table if new.all() else table.filter(new))
    return pa.concat_tables(tables) if tables else None


def _names_of(source: ImageSet, retries: int) -> pa.Table | None:
    classes = source.manifest.num_classes
    if not is_remote(source.path):
        path = Path(source.path) / IDENTITIES_NAME
        return read_identities(path, "name", classes) if path.exists() else None
    with tempfile.TemporaryDirectory(prefix="headcount-names-") as folder:
        path = Path(folder) / IDENTITIES_NAME
        try:
            Remote(source.path, retries).download(IDENTITIES_NAME, path, _MOST_BYTES, lambda _: None)
        except FileNotFoundError:
            return None
        return read_identities(path, "name", classes)
