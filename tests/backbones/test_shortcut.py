"""The shortcut of a residual block, which goes around a fault of torch's narrow convolutions on CPUs."""

import pytest
import torch
from torch.nn.functional import conv2d

from dist_train.backbones.iresnet import Shortcut


@pytest.mark.parametrize("channels", [8, 16])  # around it, and torch's own
@pytest.mark.parametrize("side", [6, 7])
def test_values_and_gradients_are_those_of_a_strided_convolution(channels, side):
    shortcut = Shortcut(channels, 5, 2)
    images = torch.randn(3, channels, side, side).contiguous(memory_format=torch.channels_last).requires_grad_()
    out = shortcut(images)
    slopes = torch.randn_like(out)
    out.backward(slopes)
    expected_images = images.detach().double().requires_grad_()
    expected_weight = shortcut.weight.detach().double().requires_grad_()
    expected = conv2d(expected_images, expected_weight, stride=2)
    expected.backward(slopes.double())
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(images.grad.double(), expected_images.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(shortcut.weight.grad.double(), expected_weight.grad, rtol=1e-5, atol=1e-5)


def test_a_narrow_one_has_no_strided_convolution_of_torch_to_go_back_through():
    shortcut = Shortcut(8, 16, 2)
    out = shortcut(torch.randn(2, 8, 4, 4, requires_grad=True))
    assert out.grad_fn.name().startswith("ConvolutionBackward")
    assert out.grad_fn._saved_stride == (1, 1)
