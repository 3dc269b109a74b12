"""The head against float64 on the CPU: loss, gradient of the embeddings and rows, over two steps of each kind."""

import random
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu_parts.bench import Bench, relative_error
from benchmarks.gpu_parts.several_labels import solve_several
from dist_train.head import Head, HeadConfig
from tests.head.reference import solve

LR, STEPS = 0.05, 2
# Of ‖head - reference‖ / ‖reference‖, by the type of the operands of the products. A scale of 64 makes an error of a
# cosine one of the logits 64 times as large.
TOLERANCES = {"float32": 1e-4, "tf32": 1e-2, "bfloat16": 5e-2}
# A rounding lets some negatives pass a threshold, or another center be the nearest: each moves a whole share.
JUMPS = {"float32": 1e-2, "tf32": 5e-2, "bfloat16": 0.5}
SMALL_SEED = 2  # with which the shrunk cases are farthest from their tolerances, of eight
ROUNDED_ROWS = 1e-2  # of the rows themselves where they are stored in bfloat16


class Case(NamedTuple):
    """A head and the sizes of its problem."""

    settings: dict[str, Any]
    classes: int = 1003
    samples: int = 130
    dim: int = 512
    labels: int = 1
    jumps: bool = False


MARGINS: list[dict[str, Any]] = [
    {"margin": "softmax"},
    {"margin": "normface"},
    {"margin": "sphereface", "m1": 1.7},
    {"margin": "cosface"},
    {"margin": "arcface"},
    {"margin": "arcface", "easy_margin": True},
    {"margin": "combined", "m1": 2.0, "scale": 32.0},
    {"margin": "adaface", "adaface": {"momentum": 0.5}},
    {"margin": "curricularface", "curricular_momentum": 0.5},
    {"margin": "magface", "magface": {"lower_norm": 60.0, "upper_norm": 75.0}},
    {"margin": "adaptive"},
]
CASES = [Case(margin, jumps=margin["margin"] == "curricularface") for margin in MARGINS]
CASES += [
    Case({"sample_rate": 0.3}),
    Case({"sample_rate": 0.3, "block_rows": 64, "logits_budget_mb": 1}, classes=12_289, samples=257, dim=128),
    Case({"sample_rate": 0.01}),  # more positives than the sample
    Case({"centers_per_class": 3}, jumps=True),
    Case({"centers_per_class": 2, "sample_rate": 0.5, "margin": "adaface"}, dim=96, jumps=True),
    Case({"interclass_threshold": 0.06}, jumps=True),
    Case({"interclass_threshold": 0.1, "sample_rate": 0.6, "block_rows": 37}, samples=33, dim=128, jumps=True),
    Case({"filter_eps": 1e-12, "momentum": 0.0, "weight_decay": 0.0}),
    Case({"filter_eps": 1e-12, "momentum": 0.0, "weight_decay": 0.0, "sample_rate": 0.4}),
    Case({"margin": "cosface"}, labels=4),
    Case({"margin": "arcface", "scale": 8.0, "sample_rate": 0.4}, labels=3, dim=128),
    Case({}, classes=2, samples=5, dim=48),
    Case({}, classes=4099, samples=1, dim=512),
    Case({"optimizer": "rowwise_adagrad", "optimizer_eps": 1e-3, "sample_rate": 0.3}),
    Case({"optimizer": "adamw", "optimizer_eps": 1e-3}),
    Case({"dtype": "bfloat16"}),
    Case({"dtype": "bfloat16", "optimizer": "rowwise_adagrad", "optimizer_eps": 1e-3, "sample_rate": 0.3}),
    Case({"storage": "host", "sample_rate": 0.3}),
]


def run(bench: Bench) -> None:
    """Check each case, in every arithmetic that the head has."""
    every = ["bfloat16", "float32", "tf32"]
    for arithmetic in every:
        worst: dict[str, float] = {}
        wrong, checked = [], 0
        for case in map(shrunk, CASES) if bench.small else CASES:
            name = " ".join([arithmetic, *(f"{key}={value}" for key, value in case.settings.items())])
            name += f" {case.classes}x{case.samples}x{case.dim}" + (f" labels={case.labels}" if case.labels > 1 else "")
            if not bench.enough(name, 2):
                continue
            with bench.case(name):
                found = errors(bench, case, arithmetic)
                bench.line(name, **found)
                checked += 1
                wrong += [] if found["ok"] else [name]
                worst = {key: max(worst.get(key, 0.0), value) for key, value in found.items() if "error" in key}
        if checked:
            bench.line(f"all in {arithmetic}", cases=checked, wrong=wrong, worst=worst, ok=not wrong)


def shrunk(case: Case) -> Case:
    """The case in sizes for a CPU, as uneven."""
    return case._replace(classes=min(case.classes, 61), samples=min(case.samples, 9), dim=min(case.dim, 24))


def errors(bench: Bench, case: Case, arithmetic: str) -> dict[str, Any]:
    """The relative errors of two steps, and whether they are within what the arithmetic allows."""
    config = HeadConfig.model_validate(case.settings | {"arithmetic": arithmetic})
    counts = torch.arange(case.classes) % 7 * 10 + 1
    # Other inputs in each run, and the line says which; but of few samples one that jumps is a large share.
    seed = SMALL_SEED if bench.small else random.randrange(1 << 30)
    head = Head(
        config, case.classes, case.dim, group=None, rank=0, world_size=1, device=bench.device, seed=seed,
        class_counts=counts,
    )  # fmt: skip
    table = head.tables()["centers"]
    first = table.detach().cpu().double().view(case.classes, config.centers_per_class, -1).clone()
    state = {"rows": first}
    averages: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(seed)
    found = {"loss_error": 0.0, "gradient_error": 0.0}
    for step in range(1, STEPS + 1):
        embeddings = torch.randn(case.samples, case.dim, generator=generator) * 3
        labels = random_labels(case, generator)
        near = embeddings.to(bench.device).requires_grad_()
        if step == 2:
            head.prepare(labels)
        loss = head(near, labels)
        loss.backward()
        choice = head._loss.micro_batches[0].rows.classes
        chosen = torch.ones(case.classes, dtype=torch.bool)
        if choice is not None and not config.filter_eps:
            chosen[:] = False
            chosen[torch.as_tensor(choice).cpu()] = True
        elif config.sample_rate < 1:  # what the filter has left is not what was chosen
            chosen = sampled(head, case.classes)
        scale = head.margin.scale
        if case.labels > 1:
            answer = solve_several(config, state["rows"], embeddings, labels, chosen, scale)
        else:
            answer = solve(config, state["rows"], embeddings, labels, chosen, scale, counts, averages=averages)
        found["loss_error"] = max(found["loss_error"], relative_error(loss, answer.loss))
        found["gradient_error"] = max(found["gradient_error"], relative_error(near.grad, answer.embeddings_grad))
        head.step(LR)
        update(config, state, answer.rows_grad, chosen, step)
    after = head.tables()["centers"].detach().cpu().double().view_as(first)
    if config.dtype == "bfloat16":
        found["rows_error"], most_rows = relative_error(after, state["rows"]), ROUNDED_ROWS
    else:
        found["rows_error"] = relative_error(after - first, state["rows"] - first)
        most_rows = (JUMPS if case.jumps else TOLERANCES)[arithmetic]
        most_rows *= 10 if config.optimizer == "adamw" else 1  # it divides by roots of squares that are near zero
    most = (JUMPS if case.jumps else TOLERANCES)[arithmetic]
    if config.dtype == "bfloat16":  # the second step begins from rows that were rounded at random
        most = max(most, 2e-2)
    ok = max(found["loss_error"], found["gradient_error"]) <= most and found["rows_error"] <= most_rows
    head.close()
    return {"ok": ok, **found, "most": most, "most_rows": most_rows, "seed": seed}


def random_labels(case: Case, generator: torch.Generator) -> Tensor:
    """Labels [G], of which some repeat; or [G, L], one to L distinct ones a sample and -1 behind them."""
    if case.labels == 1:
        labels = torch.randint(0, case.classes, (case.samples,), generator=generator)
        labels[-1] = labels[0]
        return labels
    rows = [torch.randperm(case.classes, generator=generator)[: case.labels] for _ in range(case.samples)]
    labels = torch.stack(rows)
    counts = 1 + torch.arange(case.samples) % case.labels
    return labels.masked_fill(torch.arange(case.labels) >= counts[:, None], -1)


def sampled(head: Head, classes: int) -> Tensor:
    """The classes of the last softmax, before the filter; all where nothing was sampled."""
    leased = head._loss.micro_batches[0].rows.lease
    chosen = torch.zeros(classes, dtype=torch.bool)
    chosen[torch.as_tensor(leased.classes).cpu()] = True
    return chosen


def update(config: HeadConfig, state: dict[str, Tensor], gradient: Tensor, chosen: Tensor, step: int) -> None:
    """The optimizer's step over the chosen rows [C, K, D], in float64; `state` begins with the rows alone."""
    rows, where = state["rows"], chosen[:, None, None]
    zeros = torch.zeros_like(rows)
    if config.optimizer == "sgd":
        kept = config.momentum * state.get("first", zeros) + gradient + config.weight_decay * rows
        state["first"] = torch.where(where, kept, state.get("first", zeros))
        fresh = rows - LR * kept
    elif config.optimizer == "rowwise_adagrad":
        second = state.get("second", zeros[:, :, :1]) + gradient.square().mean(dim=2, keepdim=True)
        state["second"] = torch.where(where, second, state.get("second", zeros[:, :, :1]))
        fresh = rows * (1 - LR * config.weight_decay) - LR * gradient / (second.sqrt() + config.optimizer_eps)
    else:  # adamw, whose rows are all chosen here
        first = config.beta1 * state.get("first", zeros) + (1 - config.beta1) * gradient
        second = config.beta2 * state.get("second", zeros) + (1 - config.beta2) * gradient.square()
        state |= {"first": first, "second": second}
        mean, square = first / (1 - config.beta1**step), second / (1 - config.beta2**step)
        fresh = rows * (1 - LR * config.weight_decay) - LR * mean / (square.sqrt() + config.optimizer_eps)
    state["rows"] = torch.where(where, fresh, rows)
