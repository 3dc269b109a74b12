"""The head by its kernels, run by Triton's interpreter, against one process in float64.

Every case is worked off in two processes, each of which interprets; see `interpreted`.
"""

from functools import cache
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

from dist_train.head import Head, HeadConfig, kernels
from tests.gpuless.pretence import GPU, pretended_gpu
from tests.head import test_head_steps, test_several_labels, test_sharded_head
from tests.head.interpreted import OPTIMIZERS, work
from tests.ranks import run_ranks

SHAPES = test_sharded_head.SHAPES
MARGINS: dict[str, tuple] = {
    **{
        " ".join(map(str, margin.values())): (margin | SHAPES[number % 4][0], SHAPES[number % 4][1])
        for number, margin in enumerate(test_sharded_head.MARGINS)
    },
    "threshold": ({"interclass_threshold": 0.2} | SHAPES[1][0], 31),
    "threshold, 3 centers": ({"interclass_threshold": 0.1, "centers_per_class": 3, "scale": 30.0}, 11),
    "softmax, 2 centers": ({"margin": "softmax", "centers_per_class": 2}, 19),
    "curricularface, 2 centers, threshold": (
        {"margin": "curricularface", "curricular_momentum": 0.3, "centers_per_class": 2, "interclass_threshold": 0.3},
        17,
    ),
    "scale beyond a float's": ({"scale": 100.0, "block_rows": 20}, 37),
    "one class": ({"margin": "cosface", "weight_decay": 0.5}, 1),
    "an odd number of tiles": (
        {"margin": "curricularface", "curricular_momentum": 0.3, "scale": 30.0}, 37, torch.float32, 19, 21,
    ),
    "one sample": ({"margin": "cosface"}, 23, torch.float32, 1, 13),
}  # fmt: skip
OWN_TILES = ({"centers_per_class": 3}, 45, torch.float32, 9, 70)
LABELS = [
    test_several_labels.CASES[1],
    test_several_labels.CASES[2],  # formed again
    test_several_labels.CASES[3],  # filtered: torch forms the weights
    {"margin": "cosface", "m3": 0.0, "scale": 30.0, "weighted": True},  # formed again
]
PLENTY, LITTLE = 2**20, 160  # bytes of logits; with little, ten classes a block, and none stay for the step
STEPS: list[tuple[dict, int]] = [
    (optimizer | kind, PLENTY)
    for optimizer, kind in zip(test_head_steps.OPTIMIZERS, test_head_steps.KINDS, strict=False)
]
STEPS += [(test_head_steps.OPTIMIZERS[3] | test_head_steps.KINDS[4], LITTLE), (test_head_steps.LIFTED[0], LITTLE)]
HALVES = [optimizer | {"dtype": dtype} for optimizer in OPTIMIZERS for dtype in ("float32", "bfloat16")]
TOGETHER: list[tuple] = [
    ({"sample_rate": 0.4, "centers_per_class": 2}, 29),
    ({"margin": "curricularface", "curricular_momentum": 0.0}, 3),  # one class on the second rank
    ({"margin": "cosface", "weight_decay": 0.5}, 1),  # none there
]


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("rows")
    alone = {name: ("one_step", 0, 1, case) for name, case in MARGINS.items()}
    alone |= {"tiles": ("one_step", 0, 1, OWN_TILES, None)}
    alone |= {f"labels {number}": ("several_labels", case) for number, case in enumerate(LABELS)}
    for number, (settings, budget) in enumerate(STEPS):
        alone[f"steps {number}"] = ("steps", settings, str(folder / str(number)), budget)
    alone |= {f"conditions {number}": ("conditions", case) for number, case in enumerate(HALVES)}
    alone |= {"roundings": ("roundings", 1.001, -0.3, 0.9, 6), "kept": ("roundings", 1.0, 0.0, 0.9, 2)}
    ranks = run_ranks(2, work, alone, TOGETHER, variables={"TRITON_INTERPRET": "1"}, timeout_s=280)
    assert {rank.pop("kind") for rank in ranks} == {"InterpretedFunction"}
    together = [rank.pop("together") for rank in ranks]
    return ranks[0] | ranks[1] | {"together": together}


def launched(result: dict) -> None:
    assert result["launches"]["weights"] > 0
    assert result["launches"]["update"] > 0


@pytest.mark.parametrize("name", MARGINS)
def test_one_step_by_kernels_agrees_with_the_plain_formula_in_float64(name, found):
    launched(found[name])
    test_sharded_head.check([found[name]], *MARGINS[name])


def test_a_step_with_the_tiles_of_a_gpu_agrees_with_the_plain_formula(found):
    launched(found["tiles"])
    test_sharded_head.check([found["tiles"]], *OWN_TILES)


@pytest.mark.parametrize("number", range(len(LABELS)))
def test_a_step_with_several_labels_by_kernels_agrees_with_the_plain_formula(number, found):
    result = found[f"labels {number}"]
    assert result["launches"]["update"] > 0
    assert ("weights" in result["launches"]) == ("filter_eps" not in LABELS[number])
    test_several_labels.check(LABELS[number], [result])


@pytest.mark.parametrize("number", range(len(STEPS)))
def test_accumulated_steps_by_kernels_agree_with_dense_optimizers_in_float64(number, found):
    launched(found[f"steps {number}"])
    test_head_steps.check([[found[f"steps {number}"]]], [STEPS[number][0]])


@pytest.mark.parametrize("number", range(len(TOGETHER)))
def test_two_ranks_by_kernels_agree_with_one_process_in_float64(number, found):
    test_sharded_head.check([rank[number] for rank in found["together"]], *TOGETHER[number])


@pytest.mark.parametrize("number", range(len(HALVES)))
def test_a_refused_step_leaves_every_bit_and_one_that_proceeds_is_as_if_nobody_had_asked(number, found):
    (before, refused, proceeded, plain), norms = found[f"conditions {number}"]
    assert np.isnan(norms[0]), "the kernel wrote nothing"
    assert norms[1] == norms[2] > 0
    for name, table in before.items():
        np.testing.assert_array_equal(refused[name], table)
        np.testing.assert_array_equal(proceeded[name], plain[name])
        assert (plain[name] != table).any()


def test_the_mean_of_the_kernels_roundings_is_the_value_and_each_is_drawn_by_itself(found):
    centers, moments = found["roundings"]
    start = 1.0 + 2**-7 * round(0.001 * 2**7)  # 1.001 in bfloat16
    for values, exact, spacing in ((centers, start + 0.3, 2**-7), (moments, -0.3, 2**-9)):
        assert set(np.unique(values)) <= {np.floor(exact / spacing) * spacing, np.ceil(exact / spacing) * spacing}
        assert abs(values.mean() - exact) < 5 * 0.5 * spacing / values.size**0.5
        each = {row.tobytes() for row in values.reshape(-1, values.shape[2])}
        assert len(each) > 0.95 * values.shape[0] * values.shape[1]
    up = [values > values.mean() for values in (centers, moments)]
    assert 0.4 < (up[0] == up[1]).mean() < 0.6, "two tables share their noise"


def test_what_bfloat16_holds_stays_as_it_is(found):
    centers, moments = found["kept"]
    assert (centers == 1).all()
    assert not moments.any()


class NoCompiler:
    """Triton's way to the driver on a machine that cannot build it."""

    asked = 0

    @property
    def active(self):
        self.asked += 1
        raise RuntimeError("Failed to find C compiler.")


@pytest.mark.parametrize("arithmetic", ["bfloat16", "float32"])
def test_where_triton_cannot_build_a_head_on_a_gpu_takes_torchs_operators_and_says_once_what_to_install(
    monkeypatch, caplog, arithmetic
):
    missing, unasked = NoCompiler(), cache(kernels.triton_runs.__wrapped__)
    monkeypatch.setattr("triton.runtime.driver", missing)
    with pretended_gpu() as gpu, patch.object(kernels, "triton_runs", unasked):
        for _ in range(2):
            config = HeadConfig(arithmetic=arithmetic)
            head = Head(config, 40, 16, group=None, rank=0, world_size=1, device=GPU, seed=0)
            assert missing.asked == 1, "when a head is opened, and never again"
            head(torch.randn(8, 16, device=GPU, requires_grad=True), torch.arange(8)).backward()
            head.step(0.1, proceed=torch.ones((), dtype=torch.bool, device=GPU))
            head.close()
    assert not gpu.launched
    (said,) = caplog.messages
    assert "RuntimeError: Failed to find C compiler." in said
    assert "apt install gcc python3-dev" in said
