"""Options that all training commands share."""

from typing import Annotated

import typer

Resume = Annotated[bool, typer.Option("--resume", help="continue from the newest checkpoint in run_dir")]
AllowChanges = Annotated[
    bool, typer.Option("--allow-changes", help="resume even if the configuration differs from that of the run")
]


def going_on(resume: bool, allow_changes: bool) -> list[str]:
    """The two options as words for `headcount train`."""
    return [*(["--resume"] if resume else []), *(["--allow-changes"] if allow_changes else [])]
