"""Options that all commands which train have in common."""

from typing import Annotated

import typer

Resume = Annotated[bool, typer.Option("--resume", help="go on from the newest checkpoint in run_dir")]
AllowChanges = Annotated[
    bool, typer.Option("--allow-changes", help="resume although the configuration differs from the stored one")
]


def going_on(resume: bool, allow_changes: bool) -> list[str]:
    """The same options for `headcount train`."""
    return [*(["--resume"] if resume else []), *(["--allow-changes"] if allow_changes else [])]
