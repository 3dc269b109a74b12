"""Names of rows of embeddings whose pictures lie in tars: `TAR:MEMBER`, as `headcount embed` writes them."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

_TAR = r"(?is)^(?P<tar>.*?\.tar):"


def tars_of(keys: pa.Array) -> Any:  # noqa: ANN401 - pyarrow does not type what arrays hold
    """The name of the tar in each key, a dictionary array of text [N]; null where the picture is in none."""
    found = pc.extract_regex(keys, _TAR)
    return pc.if_else(found.is_valid(), found.field("tar"), None).dictionary_encode()
