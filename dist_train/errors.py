"""The two ways a command fails; the command line turns them into exit status 2 and 1."""


class UserError(ValueError):
    """The user's mistake: a wrong key, path or value. The message names the mistake and the way out."""


class WorkError(RuntimeError):
    """The work failed although the command was right: data rotted, a disk filled, a rank died."""


class NonFiniteError(WorkError):
    """NaN or infinity where a step needs numbers; the step was refused on every rank and changed nothing."""
