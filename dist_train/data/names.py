"""The names of the classes of a run, over all of its sets."""

import numpy as np
import pyarrow as pa

from dist_train.data.config import DataConfig
from dist_train.data.set_identities import identities_of
from dist_train.data.sources import open_sources


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
        table = identities_of(each, "name", config.retries)
        if table is None:
            continue
        labels = table["label"].to_numpy() + each.first_label
        new = ~named[labels]
        named[labels] = True
        table = pa.table({"label": pa.array(labels), "name": table["name"]})
        tables.append(table if new.all() else table.filter(new))
    return pa.concat_tables(tables) if tables else None
