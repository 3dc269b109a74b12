"""What reading and writing a checkpoint raises."""

from torch.distributed.checkpoint.api import CheckpointException

from dist_train.errors import WorkError

# What may go wrong in reading and writing is raised as many kinds of error; DCP's own is not even an `Exception`.
DCP_ERRORS = (Exception, CheckpointException)


def last_line(error: BaseException) -> str:
    """The last line of an error's message, where nested errors put the reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # DCP puts the tracebacks of all ranks into a message, whose last line begins with the class of our own error.
    return lines[-1].removeprefix(f"{WorkError.__module__}.WorkError: ") if lines else type(error).__name__
