"""The check of compiled kernels: which variants it takes, and what it refuses."""

import pytest

from dist_train.head.kernels.weights import weights_kernel
from tests.head.compiled import SHARED_BYTES, Resources, compiled, faults, variants


def test_every_optimizer_with_tables_of_either_type_and_every_form_of_weights_is_compiled():
    launches = [(launch.kernel, dict(launch.constants)) for launch in variants(90)]
    updates = {(made["OPTIMIZER"], made["BFLOAT16"]) for kernel, made in launches if kernel == "update"}
    assert updates == {
        (name, half) for name in ("sgd", "momentum", "rowwise_adagrad", "adamw") for half in (False, True)
    }
    weights = [made for kernel, made in launches if kernel == "weights"]
    for name in ("LIFTED", "THRESHOLD", "LARGEST", "NORMALISED"):
        assert {made[name] for made in weights} == {False, True}
    assert {made["K"] for made in weights} == {1, 2, 3, 16}
    assert {made["LABELS"] for made in weights} == {1, 4, 8, 64}
    keys = {dict(launch.signature)["key"] for launch in variants(90) if launch.kernel == "update"}
    assert keys == {"i32", "i64"}
    names = [parameter.name for parameter in weights_kernel.params]
    for name in ("width", "samples_total", "inverse", "out"):
        place = names.index(name)
        assert {place in launch.aligned for launch in variants(90) if launch.kernel == "weights"} == {False, True}


def test_spills_too_much_shared_memory_and_products_without_tensor_cores_are_refused():
    launch = next(launch for launch in variants(90) if launch.kernel == "weights")
    assert faults(launch, 90, Resources(255, 0, SHARED_BYTES[90], 8)) == []
    assert "8 bytes a thread are spilled" in faults(launch, 90, Resources(255, 8, 0, 8))[0]
    assert "233472 bytes of shared memory, a block has 232448" in faults(launch, 90, Resources(255, 0, 228 << 10, 8))[0]
    assert faults(launch, 90, Resources(255, 0, 0, 0)) == ["no product is the tensor cores'"]


@pytest.mark.job
def test_a_kernel_is_compiled_for_a_gpu_where_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    launch = next(launch for launch in variants(90) if launch.kernel == "update")
    found = compiled(launch, 90)
    assert 16 <= found.registers <= 255
    assert found.spilled == 0
    assert 0 < found.shared < 1024
