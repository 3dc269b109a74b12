"""A whole step, evaluation and detection with tensors that claim to be on a GPU: devices, types, memory."""

from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.traffic import moved
from data_prep.mtcnn.cascade import Detector
from dist_train.evaluate.config import EvaluateConfig
from dist_train.evaluate.embeddings import embed_pictures
from dist_train.evaluate.suite import evaluate_backbone
from dist_train.head.margins.table import MARGINS
from dist_train.runtime.ranks import Ranks
from launch.check import plan_setup
from launch.plan_head import head_products, kernel_traffic
from launch.plan_model import gpu_memory, head_shape
from tests.gpuless.ledger import Ledger, asking
from tests.gpuless.pretence import GPU, pretended_gpu
from tests.gpuless.program import batch, program, recipe, step

pytestmark = pytest.mark.job  # seconds each

ALONE = Ranks(0, 0, 1, GPU)
HEAD_AT_WORK = ("logits", "gathered embeddings", "blocks of rows", "norms and indices", "copies of chosen rows")
HEAD_AT_WORK += ("nearest centers",)
NOT_COUNTED = ("CUDA, NCCL, cuDNN", "gaps")


def part_of(name, args, tensor, asking):
    """The planner's part of a new storage; what is known only later is given its part by `Ledger.call`."""
    if name == "_to_copy" and args and isinstance(args[0], nn.Parameter) and tensor.dtype == torch.bfloat16:
        return "backbone weights in 16 bits"
    return "head at work" if asking.startswith("head/") else "activations"


def measured(config, identities):
    """Of a second step: the most bytes of each part before the update, the most at a time, the program, launches."""
    with pretended_gpu(share=1) as gpu:  # a filter leaves all, as the plan has it
        ledger = Ledger(gpu, part_of)
        trained, accumulation = program(config, ALONE, identities)
        backbone, head = trained.backbone, trained.head
        ledger.call("backbone weights", [*backbone.parameters(), *backbone.buffers()])
        tables = dict(head._store.tables) if config.head.storage == "device" else {}
        ledger.call("class centers", [tables.pop("centers")] if tables else [])
        ledger.call("centers' optimizer state", list(tables.values()))
        if trained.average is not None:
            ledger.call("moving average", [*trained.average.parameters(), *trained.average.buffers()])
        batches = [batch(config.train.global_batch_size, 112, GPU) for _ in range(2)]  # this one, and the next
        ledger.call("pictures", [each.images for each in batches])
        step(trained, batches[0].chunk(accumulation), 0)
        state = trained.replica._optimizer.state
        kept = [value for each in state.values() for value in each.values() if value.ndim]
        ledger.call("backbone optimizer", kept)
        ledger.begin()
        trained.enter(1)
        trained.begin()
        parts = batches[0].chunk(accumulation)
        for part in parts:
            trained.micro_step(part, last=part is parts[-1])
            ledger.call("backbone gradients", [parameter.grad for parameter in backbone.parameters()])
        # What comes and goes in the update does so when there are no activations.
        working = {part: most for part, most in ledger.peak.items() if most}
        trained.update(0.1, measure=False)
    return working, ledger.peak_total, trained, gpu.launched


RECIPES = {
    "R18, sampled, with sub-centers, clipped and averaged": (
        {
            "backbone": {"name": "iresnet18", "embedding_dim": 512},
            "head": {"sample_rate": 0.1, "centers_per_class": 2},
            "train": {"global_batch_size": 128, "ema_decay": 0.999},
            "optimizer": {"clip_norm": 1.0},
        },
        1_000_000,
    ),
    "R18, AdamW, rows on the host": (
        {
            "backbone": {"name": "iresnet18", "embedding_dim": 256},
            "head": {"sample_rate": 0.05, "storage": "host", "optimizer": "adamw"},
            "train": {"global_batch_size": 128},
            "optimizer": {"name": "adamw"},
        },
        3_000_000,
    ),
    "bfloat16 rows, two passes": (
        {
            "head": {"sample_rate": 0.1, "dtype": "bfloat16", "optimizer": "rowwise_adagrad", "logits_budget_mb": 64},
            "train": {"global_batch_size": 64, "micro_batch_size": 32},
        },
        500_000,
    ),
    "all rows, weights formed twice": (
        {
            "head": {"logits_budget_mb": 16, "margin": "softmax"},
            "train": {"global_batch_size": 64, "micro_batch_size": 32},
        },
        500_000,
    ),
    "products in float32": (
        {
            "head": {"sample_rate": 0.3, "arithmetic": "float32", "centers_per_class": 2},
            "train": {"global_batch_size": 64},
        },
        500_000,
    ),
    "small weights filtered": (
        {"head": {"sample_rate": 0.3, "filter_eps": 1e-3}, "train": {"global_batch_size": 64}},
        500_000,
    ),
}


@pytest.mark.parametrize("name", RECIPES)
def test_planned_memory_by_part_and_in_all_is_that_of_a_step_on_a_gpu(name):
    sections, identities = RECIPES[name]
    config = recipe(**{"backbone": {"name": "mobilefacenet", "embedding_dim": 512}} | sections)
    working, most_in_all, trained, launched = measured(config, identities)
    setup = plan_setup(config, config.head, identities, 112, gpus=1)
    planned = gpu_memory(setup)
    whole = sum(size for part, size in planned.items() if part not in NOT_COUNTED)
    assert whole == pytest.approx(most_in_all, rel=0.05)
    planned["head at work"] = sum(planned.get(part, 0) for part in HEAD_AT_WORK)
    for part, most in working.items():
        assert planned[part] == pytest.approx(most, rel=0.05, abs=0.005 * whole), part
    assert {"update_kernel"} <= set(launched)
    assert ("weights_kernel" in launched) == head_shape(setup).kernels
    assert {each.dtype for each in trained.backbone.parameters()} == {torch.float32}
    assert trained.head._store.tables["centers"].dtype == getattr(torch, config.head.dtype)


MOVED = {
    "a tenth": {"sample_rate": 0.1},
    "all rows": {},
    "bfloat16 rows": {"sample_rate": 0.1, "dtype": "bfloat16", "optimizer": "rowwise_adagrad", "centers_per_class": 2},
    "all rows in bfloat16": {"dtype": "bfloat16", "scale": 96.0},
    "weights formed twice": {"sample_rate": 0.1, "logits_budget_mb": 32},
    "plain softmax": {"margin": "softmax", "momentum": 0.0},
    "lifted negatives": {"margin": "curricularface", "optimizer": "adamw"},
}


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("name", MOVED)
def test_planned_traffic_of_the_kernels_is_what_they_and_the_products_around_them_are_given(name, passes):
    config = recipe(
        backbone={"name": "nano", "embedding_dim": 128},
        head=MOVED[name],
        train={"global_batch_size": 512 * passes, "micro_batch_size": 512},
    )
    around = []

    def watch(func, args, kwargs, out):
        if asking().startswith("head/") and func is not torch.ops.aten.index_put_.default:  # made of an `index_add_`
            around.append(moved(func, args, kwargs, out))

    with pretended_gpu() as gpu:
        trained, _ = program(config, ALONE, 400_000, 32)
        step(trained, batch(512 * passes, 32, GPU).chunk(passes), 0)
        gpu.moved.clear()
        gpu.watchers.append(watch)
        step(trained, batch(512 * passes, 32, GPU).chunk(passes), 1)
    shape = head_shape(plan_setup(config, config.head, 400_000, 32, gpus=1))
    products = head_products(shape)
    planned = kernel_traffic(shape) + (products.formed + products.multiplied) * shape.logits_bytes
    assert planned == pytest.approx(sum(around) + gpu.moved.total(), rel=0.05)


OF_ANY_SET = [{"margin": name} for name, spec in MARGINS.items() if not spec.needs_class_counts]


@pytest.mark.parametrize("margin", [*OF_ANY_SET, {"scale": 64.5}, {"scale": 65.0}])
def test_a_product_for_the_largest_logit_is_planned_where_the_kernel_makes_one(margin):
    config = small(head=margin | {"filter_eps": 0.0})
    with pretended_gpu() as gpu:
        trained, _ = program(config, ALONE, 500, 32)
        step(trained, [batch(8, 32, GPU)], 0)
    products = head_products(head_shape(plan_setup(config, config.head, 500, 32, gpus=1)))
    assert gpu.launched["weights_kernel"] == products.formed + products.searched


def small(**changes):
    return recipe(
        backbone={"name": "nano", "embedding_dim": 16},
        head={"filter_eps": 1e-3, "sample_rate": 0.5} | changes.pop("head", {}),
        train={"global_batch_size": 8} | changes.pop("train", {}),
        **changes,
    )


@pytest.mark.parametrize(
    "head",
    [
        {"margin": "curricularface"},
        {"margin": "softmax", "sample_rate": 1.0},
        {"margin": "adaface", "optimizer": "adamw", "dtype": "bfloat16"},
        {"margin": "magface", "interclass_threshold": 0.5, "centers_per_class": 3},
    ],
)
def test_no_head_mixes_devices_with_and_without_the_filter(head):
    with pretended_gpu():
        for eps in (0.0, 1e-3):
            trained, _ = program(small(head=head | {"filter_eps": eps}), ALONE, 500, 32)
            for number in range(2):
                step(trained, batch(8, 32, GPU).chunk(1 + number), number)
            figures = trained.figures()
            assert all(np.isfinite(value) for value in figures.values())


def test_a_picture_on_the_host_is_refused_as_a_gpu_refuses_it():
    with pretended_gpu():
        trained, _ = program(small(), ALONE, 500, 32)
        mixed = batch(8, 32, GPU)._replace(images=batch(8, 32, torch.device("cpu")).images)
        with pytest.raises(RuntimeError, match=r"same device|different devices"):
            step(trained, [mixed], 0)


def test_embeddings_are_16_bits_wide_and_the_gradient_that_comes_back_32():
    seen = {}
    with pretended_gpu():
        trained, _ = program(small(), ALONE, 500, 32)
        backward = trained.replica.backward

        def noting(embeddings, gradient):
            seen.update(embeddings=embeddings, gradient=gradient)
            backward(embeddings, gradient)

        with mock.patch.object(trained.replica, "backward", noting):
            step(trained, [batch(8, 32, GPU)], 0)
    assert {name: (tensor.device, tensor.dtype) for name, tensor in seen.items()} == {
        "embeddings": (GPU, torch.bfloat16),
        "gradient": (GPU, torch.float32),
    }


def test_evaluation_embeds_on_the_gpu_and_gives_float32_on_the_host():
    with pretended_gpu(share=0) as gpu, mock.patch("dist_train.evaluate.suite.evaluate_sets", lambda _, how: how):
        trained, _ = program(small(train={"ema_decay": 0.9}), ALONE, 500, 32)
        step(trained, [batch(8, 32, GPU)], 0)
        used = set()
        gpu.watchers.append(lambda func, args, kwargs, out: used.add((func._schema.name, getattr(out, "device", None))))
        how = evaluate_backbone(trained.evaluated(), EvaluateConfig(), 32, ALONE)
        found = embed_pictures(how.embed, lambda number: np.zeros((32, 32, 3), np.uint8), 5, 2, ranks=ALONE)
    assert ("aten::convolution", GPU) in used
    assert (found.features.shape, found.features.dtype) == ((5, 16), torch.float32)
    assert found.features.device.type == "cpu"


def test_the_cascade_keeps_to_its_device_and_gives_float32_boxes():
    def half(boxes, scores, groups, overlap):
        """Every second box: which boxes overlap only numbers tell."""
        assert {boxes.device, scores.device, groups.device} == {GPU}
        return torch.arange(len(boxes) // 2, device=boxes.device)

    where = "data_prep.mtcnn.cascade."
    with (
        pretended_gpu(),
        mock.patch("torch.cuda.is_available", return_value=True),
        mock.patch(where + "suppress", half),
        mock.patch(where + "suppress_nested", half),
    ):
        detector = Detector(GPU, precision=torch.float16)
        found = detector.detect([np.zeros((90, 120, 3), np.uint8), np.zeros((250, 250, 3), np.uint8)])
    assert [faces.boxes.dtype for faces in found] == [np.float32] * 2
    assert found[1].boxes.shape[1:] == (4,)
    assert len(found[1].boxes)
