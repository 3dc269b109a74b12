"""Tiny runs of contrastive pre-training, and the plain formula of a step in float64."""

import copy
from dataclasses import replace

import torch
import yaml
from torch import nn

from dist_train.config import load_config
from dist_train.contrast.shuffle import Shuffle
from dist_train.head.exchange import HeadGroup
from dist_train.runtime.ranks import ALONE
from dist_train.train.build import open_training
from tests.launch.recipes import write_recipe

VIEWS = {"flip": 0.5, "crop": 0.6, "brightness": 0.3, "contrast": 0.3}
BATCH, MICRO = 24, 4


def contrast_recipe(folder, data, run_dir="run", contrast=(), **overrides):
    """A recipe that trains without labels in seconds; `contrast` changes that section."""
    overrides = {"train__steps": 4, "train__global_batch_size": BATCH, "train__micro_batch_size": MICRO} | overrides
    folder.mkdir(exist_ok=True, parents=True)
    path = write_recipe(folder / "recipe.yaml", data, folder / run_dir, data__augment=VIEWS, **overrides)
    tree = yaml.safe_load(path.read_text())
    del tree["head"]
    tree |= {"program": "contrast", "contrast": {"hidden_dim": 24, "projection_dim": 12} | dict(contrast)}
    path.write_text(yaml.safe_dump(tree))
    return path


def opened(recipe, checkpoint=None, ranks=ALONE):
    """The loop of a recipe, in a run directory that could be resumed."""
    config = load_config(recipe)
    torch.set_num_threads(1)
    config.run_dir.mkdir(exist_ok=True)
    (config.run_dir / "config.yaml").write_text(recipe.read_text())
    return open_training(config, replace(ranks, timeout_s=60.0), checkpoint)


def state_of(loop):
    """Copies of everything that a checkpoint would hold, by dotted name."""
    found = {}

    def walk(prefix, state):
        for key, value in state.items():
            if isinstance(value, dict):
                walk(f"{prefix}{key}.", value)
            else:
                found[prefix + key] = value.detach().clone().numpy()

    for name, part in loop.program.parts.items():
        walk(f"{name}.", part.state_dict())
    return found


def plain_step(program, batch, *, seed, step, temperature, queue=None):
    """Loss, and gradient by parameter name, of a global batch in one process: every formula written out, in float64.

    Args:
        program: whose weights are taken.
        batch: all G samples in the sample order.
        seed: of the run.
        step: of the run.
        temperature: τ.
        queue: [K, P] keys of earlier steps.
    """
    network, slow = copy.deepcopy(program.network).double(), copy.deepcopy(program.momentum_encoder).double()
    network.train()
    slow.train()
    order = Shuffle(seed, step, BATCH, HeadGroup(None, 0, 1)).order
    views = batch.images.double(), batch.other.double()

    def unit(rows):
        return rows / rows.square().sum(dim=1, keepdim=True).sqrt()

    keys = []
    for view in views:
        made = torch.empty(BATCH, program.network.predictor[3].out_features, dtype=torch.float64)
        with torch.no_grad():
            for group in order.split(MICRO):
                made[group] = slow.projector(slow.backbone(view[group]))
        keys.append(unit(made))
    total = torch.zeros((), dtype=torch.float64)
    for number, view in enumerate(views):
        predicted = unit(torch.cat([network(group) for group in view.split(MICRO)]))
        against = keys[1 - number] if queue is None else torch.cat([keys[1 - number], queue.double()])
        logits = predicted @ against.T / temperature
        own = logits.diagonal()[:BATCH]
        total = total + 2 * temperature * (logits.exp().sum(dim=1).log() - own).mean()
    total.backward()
    return float(total.detach()), {name: weight.grad.numpy() for name, weight in network.named_parameters()}


def all_of(batches):
    """The parts of a global batch, put together."""
    fields = zip(*batches, strict=True)
    return type(batches[0])(*(torch.cat(list(field)) for field in fields))


def norms(module):
    """The layers of a network that normalise by the batch."""
    return [each for each in module.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
