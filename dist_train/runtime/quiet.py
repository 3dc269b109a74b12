"""What libraries say and no user can act on stays out of the log; each message is named, others stay visible."""

import warnings

_MESSAGES = (
    # DeepSpeed calls torch's collectives by their former names.
    r"`torch\.distributed\.(all_gather_into_tensor|reduce_scatter_tensor)` is deprecated",
    # A run of one rank writes and reads its checkpoints alone, as it should.
    r"torch\.distributed is disabled, unavailable or uninitialized, assuming the intent is to",
)


def quiet_libraries() -> None:
    """Leave these warnings out from now on, in this process."""
    for message in _MESSAGES:
        warnings.filterwarnings("ignore", message)
