"""What a run that cannot go on says: the layer, the samples, forward or backward."""

import re

import pytest
import torch

from dist_train.errors import WorkError
from tests.sets import write_set
from tests.single import losses, trainer


@pytest.fixture(scope="module")
def tiny_set(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "set"
    write_set(path)
    return path


def spoil_output(_module, _inputs, output):
    """Sample 5 of every micro-batch."""
    output = output.clone()
    output[5] = float("inf")
    return output


def spoil_gradient(_module, _inputs, output):
    if output.requires_grad:  # not in the look at the forward pass
        output.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([5]), float("inf")))


def spoil_sum(backbone):
    dict(backbone.named_parameters())["stem.0.weight"].register_hook(lambda gradient: gradient * float("inf"))


def spoil_weight(backbone):
    with torch.no_grad():
        dict(backbone.named_parameters())["stages.2.residual.1.weight"][0, 0, 0, 0] = float("nan")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_weight, r"rank 0: weight stages\.2\.residual\.1\.weight is not finite\n"),
        (
            lambda backbone: backbone.stages[1].residual[1].register_forward_hook(spoil_output),
            r"rank 0: layer stages\.1\.residual\.1 is the first whose output is not finite: "
            r"samples at positions \[5\], labels \[\d\], of 24\n",
        ),
        (
            lambda backbone: backbone.stages[1].residual[1].register_forward_hook(spoil_gradient),
            r"rank 0: layer stages\.1\.residual\.1 is the first, from the end, whose output has a gradient that is not "
            r"finite: samples at positions \[5\], labels \[\d\], of 24\n",
        ),
        (
            lambda backbone: dict(backbone.named_parameters())["stem.0.weight"].register_hook(
                lambda g: g * float("inf")
            ),
            r"rank 0: weight stem\.0\.weight is the first, from the end, whose gradient is not finite\n",
        ),
    ],
)
def test_the_message_names_the_layer_where_numbers_are_lost_first_and_the_samples(tmp_path, tiny_set, spoil, message):
    made = trainer(tmp_path, tiny_set, train__max_bad_steps=1)
    spoil(made.program.backbone)
    with pytest.raises(WorkError) as caught:
        losses(made, 1)
    assert re.search(message, str(caught.value)), str(caught.value)
    assert "stopped at step 0, older checkpoints are intact" in str(caught.value)
