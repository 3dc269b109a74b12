"""A new directory for all that a command makes, which appears whole or not at all."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dist_train.errors import UserError
from dist_train.runtime.written import write_failures, written_directory


@contextmanager
def new_directory(output: Path) -> Iterator[Path]:
    """A context with a new directory, which is renamed to `output` at the end, or deleted after an exception.

    Raises:
        UserError: the output is there already and not empty, or cannot be written.
        WorkError: the disk refuses.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"output {output} exists and is not empty; remove it, or name another directory")
    with write_failures(f"output {output}", "nothing is left of it"), ExitStack() as stack:
        try:
            writing = stack.enter_context(written_directory(output))
        except OSError as error:
            raise UserError(f"output {output}: cannot write there: {error.strerror}; name another directory") from error
        yield writing
