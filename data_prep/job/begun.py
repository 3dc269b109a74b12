"""What lies in an output before a job begins in it: nothing, the same job, or something else, which is refused."""

import json
from pathlib import Path
from typing import Any

from data_prep.job.plan import JobFiles
from dist_train.errors import UserError
from dist_train.runtime.files import read_bounded
from dist_train.section import first_difference

_MOST_PLAN_BYTES = 1 << 20


def refuse_others(files: JobFiles, plan: Path, described: dict[str, Any], what: str) -> None:
    """Refuse an output in which anything lies but this job.

    Args:
        files: of the output.
        plan: the file in which this kind of job describes itself.
        described: this job.
        what: name of this kind of job, e.g. `merge`.

    Raises:
        UserError: another job of this kind, a job of another command, or other files.
    """
    if any(path != plan for path in files.home.glob("*.json")):
        raise UserError(f"{files.out}: holds a job of another command; use another OUT")
    try:
        before = json.loads(read_bounded(plan, _MOST_PLAN_BYTES))
        if not isinstance(before, dict):
            raise ValueError("not a JSON object")
    except (FileNotFoundError, NotADirectoryError):
        others = [path.name for path in files.out.iterdir()] if files.out.is_dir() else [files.out.name]
        if files.out.exists() and set(others) - {files.home.name}:
            raise UserError(f"{files.out}: holds something already, which is no {what}; use another OUT") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{plan}: damaged ({error}); use another OUT, or remove {files.out}") from error
    else:
        if found := first_difference(before, described, cut_digests=True):
            raise UserError(
                f"{files.out}: holds a {what} of other sets, or by other options: {found}; use another OUT, or remove "
                "it"
            )
