"""How a run's pictures fall into steps, and a step's into forward passes."""

from pathlib import Path

from dist_train.config import RunConfig
from dist_train.errors import UserError


def micro_batches(config: RunConfig, world_size: int) -> int:
    """Micro-batches in which a rank works off its share of the global batch.

    Raises:
        UserError: the share cannot be cut so.
    """
    total = config.train.global_batch_size
    micro = config.train.micro_batch_size or total // world_size
    if micro < 2 or total % (micro * world_size):
        raise UserError(
            f"train.global_batch_size {total} is not a multiple of {world_size} ranks × train.micro_batch_size {micro} "
            "(which must be at least 2); change one of them"
        )
    return total // (micro * world_size)


def total_steps(config: RunConfig, steps_per_epoch: int) -> int:
    """Optimizer steps of the whole run."""
    if config.train.steps is not None:
        return config.train.steps
    return max(1, round((config.train.epochs or 0) * steps_per_epoch))


def check_left(config: RunConfig, steps: int, step: int, position: int, checkpoint: Path) -> None:
    """See that a run can come to its end from a checkpoint.

    Args:
        config: the whole recipe.
        steps: of the whole run.
        step: of the checkpoint.
        position: of the checkpoint, in samples over all ranks.
        checkpoint: for the message.

    Raises:
        UserError: it lies behind the last step, or its steps had another size and the run's length is in epochs.
    """
    batch, epochs = config.train.global_batch_size, config.train.epochs
    if epochs is not None and position != step * batch:
        end = step + max(0, steps - -(-position // batch))
        raise UserError(
            f"checkpoint {checkpoint}: {step} steps took {position} samples, not the {step * batch} of "
            f"train.global_batch_size {batch}, so that train.epochs {epochs:g} does not say which step is "
            f"the last; give train.steps={end} and train.epochs=null, which is when the epochs are over, or the batch "
            "size of before"
        )
    if step > steps:
        length = "train.steps" if epochs is None else "train.epochs"
        raise UserError(
            f"checkpoint {checkpoint}: is of step {step}, past the last step of a run of {steps} ({length}); give "
            f"train.steps={step} or more, or a new run_dir"
        )


def check_one_set(digests: list[str], rank: int, path: object) -> None:
    """See that this rank reads the data that rank 0 reads.

    Args:
        digests: of the manifests, by rank.
        rank: this process's number.
        path: of the data, for the message.

    Raises:
        UserError: another set stands on this machine under the same path.
    """
    if digests[rank] != digests[0]:
        raise UserError(
            f"data.path {path} holds another set here than on rank 0 (manifest {digests[rank][:12]}, not "
            f"{digests[0][:12]}); copy rank 0's set to this machine"
        )
