"""Another phase of training is one program: here a linear classifier of pixels, without backbone, head or replica."""

import pytest
import torch
from torch import nn

from dist_train.checkpoint.metadata import read_tensors
from dist_train.checkpoint.part import CopiedPart
from dist_train.checkpoint.store import committed_checkpoints
from dist_train.errors import NonFiniteError, WorkError
from dist_train.track.trackers import read_metrics
from tests.sets import write_set
from tests.single import losses, trainer


class Pixels:
    """Softmax regression of labels on pixels, by gradient descent with momentum."""

    def __init__(self, setting):
        torch.manual_seed(setting.config.seed)
        size = setting.loader.image_size
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(3 * size * size, setting.loader.manifest.num_classes))
        self.momentum = {name: torch.zeros_like(weight) for name, weight in self.network.named_parameters()}
        self.accumulation, self.closed = setting.accumulation, False
        self.parts = {
            "network": CopiedPart(self.network.state_dict, self.network.load_state_dict),
            "momentum": CopiedPart(lambda: self.momentum, self.momentum.update),
        }

    def enter(self, step):
        pass

    def begin(self):
        self.network.train()

    def micro_step(self, batch, *, last):
        loss = nn.functional.cross_entropy(self.network(batch.images), batch.labels) / self.accumulation
        if not loss.isfinite():
            raise NonFiniteError("the loss is not finite")
        loss.backward()
        return loss.detach()

    @torch.no_grad()
    def update(self, lr, *, measure):
        norm = nn.utils.get_total_norm([weight.grad for weight in self.network.parameters()])
        for name, weight in self.network.named_parameters():
            weight -= lr * self.momentum[name].mul_(0.9).add_(weight.grad)
        self.network.zero_grad()
        return norm

    def discard(self):
        self.network.zero_grad()

    def evaluated(self):
        return self.network.eval()

    def figures(self):
        return {"pixels/momentum": float(self.momentum["1.weight"].norm())}

    def diagnose(self, micro_batches):
        return f"a picture of {len(micro_batches)} micro-batches is not finite"

    def close(self):
        self.closed = True


@pytest.fixture(scope="module")
def tiny_set(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "set"
    write_set(path)
    return path


def test_a_program_of_its_own_runs_through_the_loop_with_checkpoints_and_goes_on_from_one(tmp_path, tiny_set):
    options = {"program": Pixels, "train__steps": 6, "checkpoint__every_steps": 2, "checkpoint__keep": 3}
    whole = trainer(tmp_path, tiny_set, **options)
    assert whole.fit()
    outcome = whole.outcome()
    whole.close()
    assert whole.program.closed
    assert outcome.backbone is whole.program.network
    assert (outcome.step, outcome.identities, outcome.images) == (6, 10, 80)
    lines = read_metrics(tmp_path / "run")
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert lines[-1]["pixels/momentum"] > 0
    found = committed_checkpoints(tmp_path / "run")
    assert [path.name[-1] for path in found] == ["2", "4", "6"]
    assert {name.partition(".")[0] for name in read_tensors(found[0])} == {"network", "momentum"}
    resumed = trainer(tmp_path, tiny_set, found[0], **options)
    assert (resumed.step, resumed.position) == (2, 96)
    losses(resumed, 4)
    resumed.close()
    for part in ("network", "momentum"):
        states = [loop.program.parts[part].state_dict() for loop in (whole, resumed)]
        assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_a_program_that_refuses_steps_is_skipped_and_at_last_asked_why(tmp_path, tiny_set):
    made = trainer(tmp_path, tiny_set, program=Pixels, train__max_bad_steps=2)
    before = {name: value.clone() for name, value in made.program.network.state_dict().items()}
    for number in range(2):
        batch = next(made.loader)
        batch.images[30] = float("nan")  # in the second micro-batch, after the first has left its gradient
        if number == 0:
            assert torch.isnan(made.train_step(batch))
        else:
            with pytest.raises(WorkError, match="rank 0: a picture of 2 micro-batches is not finite"):
                made.train_step(batch)
    made.close()
    assert made.bad_steps.count == 2
    assert all(torch.equal(value, before[name]) for name, value in made.program.network.state_dict().items())
    assert all(weight.grad is None for weight in made.program.network.parameters())
