"""The converter that made `weights.npz` of the wheel `mtcnn-1.0.0-py3-none-any.whl` of PyPI; kept for the record.

    pip download --no-deps mtcnn==1.0.0 && pip install joblib lz4
    python -m data_prep.mtcnn.convert mtcnn-1.0.0-py3-none-any.whl

The wheel holds a list of arrays per network, in the order of its Keras layers: convolution kernels as [rows, columns,
in, out], dense ones as [in, out], inputs of the first dense layer as [columns, rows, channels]: the networks were
trained on transposed pictures. This program changes the order alone; channels that networks.py adds are zeros.
"""

import argparse
import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.mtcnn.networks import INPUT, STEM
from data_prep.mtcnn.weights import WEIGHTS
from dist_train.errors import UserError

WHEEL_SHA256 = "0a96b4868e56db9ae984449519642be6dba03240e608a67e928ebb47833e9144"
NETWORKS = {
    "pnet": "conv1 prelu1 conv2 prelu2 conv3 prelu3 box score",
    "rnet": "conv1 prelu1 conv2 prelu2 conv3 prelu3 dense4 prelu4 box score",
    "onet": "conv1 prelu1 conv2 prelu2 conv3 prelu3 conv4 prelu4 dense5 prelu5 box landmarks score",
}
Array = NDArray[np.float32]


def convert(wheel: Path) -> dict[str, Array]:
    """The arrays of all networks, named as in their state dictionaries after `pnet.`, `rnet.`, `onet.`.

    Raises:
        UserError: the file is another than the wheel named above.
    """
    import joblib

    if (found := hashlib.sha256(wheel.read_bytes()).hexdigest()) != WHEEL_SHA256:  # the wheel holds a pickle
        raise UserError(f"{wheel}: sha256 is {found}, expected {WHEEL_SHA256} (mtcnn 1.0.0)")
    arrays: dict[str, Array] = {}
    with zipfile.ZipFile(wheel) as archive:
        for network, layers in NETWORKS.items():
            values = iter(joblib.load(io.BytesIO(archive.read(f"mtcnn/assets/weights/{network}.lz4"))))
            for layer in layers.split():
                weight = next(values)
                arrays[f"{network}.{layer}.weight"] = weight.ravel() if "prelu" in layer else _kernel(layer, weight)
                if "prelu" not in layer:
                    arrays[f"{network}.{layer}.bias"] = next(values)
    for kind in "weight", "bias":
        arrays[f"pnet.conv1.{kind}"] = _padded(arrays[f"pnet.conv1.{kind}"], 0, STEM)
    arrays["pnet.prelu1.weight"] = _padded(arrays["pnet.prelu1.weight"], 0, STEM)
    arrays["pnet.conv2.weight"] = _padded(arrays["pnet.conv2.weight"], 1, STEM)
    for network in NETWORKS:
        arrays[f"{network}.conv1.weight"] = _padded(arrays[f"{network}.conv1.weight"], 1, INPUT)
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def _kernel(layer: str, weight: Array) -> Array:
    if weight.ndim == 4:
        out_in_rows_columns = weight.transpose(3, 2, 0, 1)
        return out_in_rows_columns[:, :, 0, 0] if layer in ("score", "box") else out_in_rows_columns
    if layer.startswith("dense"):
        columns_rows_channels = weight.reshape(3, 3, -1, weight.shape[1])
        return columns_rows_channels.transpose(3, 2, 1, 0).reshape(weight.shape[1], -1)
    return weight.T


def _padded(array: Array, axis: int, length: int) -> Array:
    """`array` with zeros at the end of `axis`, up to `length`."""
    return np.pad(array, [(0, length - array.shape[axis] if a == axis else 0) for a in range(array.ndim)])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    np.savez(WEIGHTS, **convert(parser.parse_args().wheel))  # type: ignore[arg-type]  # numpy's stubs take the arrays for its flag
