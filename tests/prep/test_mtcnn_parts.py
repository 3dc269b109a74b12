"""What the cascade is built of: resampling, packing, pieces, boxes, networks, weights."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import nms

from data_prep.mtcnn.boxes import pixels, regress, square, suppress, suppress_nested
from data_prep.mtcnn.networks import ONet, PNet, RNet, _pool2, _pool3
from data_prep.mtcnn.packing import pack
from data_prep.mtcnn.pyramid import CELL, STRIDE, pieces, scales
from data_prep.mtcnn.weights import load_weights
from data_prep.mtcnn.windows import CHANNELS, SumTables, cells
from tests.prep.plain_mtcnn import smaller_overlap

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)


def noise(height, width):
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


def tables(*pictures):
    return SumTables(pictures, np.empty((sum(map(cells, pictures)), CHANNELS), np.int32), CPU)


def pooled(picture, height, width):
    """[height, width, 3], normalised, by torch's own resampling."""
    image = torch.from_numpy(picture).permute(2, 0, 1).double()
    return ((F.adaptive_avg_pool2d(image[None], (height, width)) - 127.5) / 128)[0].permute(1, 2, 0).float()


def level(table, number, height, width, top=0, left=0, shape=None):
    out = torch.full((*(shape or (height, width)), CHANNELS), torch.nan)
    table.level(number, height, width, top, left, out)
    return out[..., :3]


class TestResampling:
    @settings(max_examples=60, deadline=None)
    @given(*[st.integers(1, 90)] * 4)
    def test_a_level_is_adaptive_average_pooling(self, rows, columns, height, width):
        picture = noise(rows, columns)
        table = tables(noise(7, 5), picture, noise(3, 9))
        assert torch.allclose(level(table, 1, height, width), pooled(picture, height, width), atol=1e-5)

    def test_a_part_of_a_level_repeats_the_last_row_and_column_beyond_the_edge(self):
        picture = noise(50, 70)
        whole = level(tables(picture), 0, 31, 45)
        part = level(tables(picture), 0, 31, 45, top=10, left=20, shape=(22, 26))
        assert torch.equal(part[:21, :25], whole[10:, 20:])
        assert torch.equal(part[21, :25], whole[-1, 20:])
        assert torch.equal(part[:21, 25], whole[10:, -1])

    def test_sums_that_wrap_around_do_no_harm(self):
        white = np.full((3000, 2900, 3), 255, np.uint8)
        table = tables(white)
        assert int(np.prod(white.shape[:2])) * 255 > 2**31
        assert torch.allclose(level(table, 0, 13, 17), torch.tensor(127.5 / 128), atol=1e-5)

    @settings(max_examples=40, deadline=None)
    @given(st.data(), st.sampled_from([24, 48]))
    def test_crops_are_adaptive_average_pooling(self, data, size):
        pictures = [noise(30, 41), noise(120, 97)]
        boxes, numbers = [], []
        for _ in range(5):
            numbers.append(data.draw(st.integers(0, 1)))
            height, width = pictures[numbers[-1]].shape[:2]
            left, right = sorted(data.draw(st.lists(st.integers(0, width), min_size=2, max_size=2, unique=True)))
            top, bottom = sorted(data.draw(st.lists(st.integers(0, height), min_size=2, max_size=2, unique=True)))
            boxes.append([left, top, right, bottom])
        crops = tables(*pictures).crops(torch.tensor(numbers), torch.tensor(boxes), size)
        assert crops.shape == (5, CHANNELS, size, size)
        for crop, number, (left, top, right, bottom) in zip(crops, numbers, boxes, strict=True):
            expected = pooled(np.ascontiguousarray(pictures[number][top:bottom, left:right]), size, size)
            assert torch.allclose(crop[:3].permute(1, 2, 0), expected, atol=1e-5)


SIZES = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 60)), max_size=60)


class TestPacking:
    @settings(max_examples=60, deadline=None)
    @given(SIZES)
    def test_rectangles_lie_on_their_canvas_and_on_no_other_rectangle(self, sizes):
        places, canvases = pack(sizes, 40, 60)
        covered = [np.zeros((canvas.height, canvas.width), int) for canvas in canvases]
        for (height, width), (canvas, top, left) in zip(sizes, places, strict=True):
            part = covered[canvas][top : top + height, left : left + width]
            assert part.shape == (height, width)
            part += 1
        for canvas in covered:
            assert canvas.max() == 1
            assert canvas.shape <= (40, 60)

    def test_pyramids_fill_most_of_their_canvases(self):
        sizes = [(p.height, p.width) for n in range(16) for p in pieces(n, (480, 640), 20, 0.709, 400, 640)]
        _, canvases = pack(sizes, 400, 640)
        assert sum(h * w for h, w in sizes) / sum(c.height * c.width for c in canvases) > 0.8

    def test_a_rectangle_above_the_limits_is_refused(self):
        with pytest.raises(ValueError, match="41x10 does not fit a canvas of 40x60"):
            pack([(41, 10)], 40, 60)


class TestPieces:
    @settings(max_examples=80, deadline=None)
    @given(*[st.integers(1, 300)] * 2, *[st.integers(12, 60).map(lambda n: 2 * n)] * 2)
    def test_every_window_is_in_exactly_one_piece(self, height, width, max_height, max_width):
        windows = {}
        for piece in pieces(0, (height, width), 20, 0.709, max_height, max_width):
            assert piece.height <= max_height
            assert piece.width <= max_width
            assert {piece.height % 2, piece.width % 2, piece.top % 2, piece.left % 2} == {0}
            rows, columns = (length + length % 2 for length in piece.size)
            seen = windows.setdefault(
                piece.level, np.zeros(((rows - CELL) // STRIDE + 1, (columns - CELL) // STRIDE + 1), int)
            )
            top, left = piece.top // STRIDE, piece.left // STRIDE
            count = (piece.height - CELL) // STRIDE + 1, (piece.width - CELL) // STRIDE + 1
            part = seen[top : top + count[0], left : left + count[1]]
            assert part.shape == count
            part += 1
        assert len(windows) == len(list(scales(height, width, 20, 0.709)))
        for seen in windows.values():
            assert (seen == 1).all()

    def test_a_picture_smaller_than_the_smallest_face_has_no_levels(self):
        assert list(scales(19, 500, 20, 0.709)) == []
        assert list(scales(20, 500, 20, 0.709)) == [0.6]


def random_boxes(count):
    start = RNG.uniform(0, 60, (count, 2))
    return torch.tensor(np.concatenate([start, start + RNG.uniform(10, 40, (count, 2))], 1), dtype=torch.float32)


class TestBoxes:
    def test_suppression_in_one_group_does_not_depend_on_other_groups(self):
        for count in (200, 3000):  # in one call of `nms`, and in several
            boxes, scores = random_boxes(count), torch.rand(count, generator=torch.Generator().manual_seed(0))
            groups = torch.arange(count) % 7
            together = set(suppress(boxes, scores, groups, 0.5).tolist())
            apart = set()
            for group in range(7):
                members = torch.where(groups == group)[0]
                alone = suppress(boxes[members], scores[members], torch.zeros_like(members), 0.5)
                apart |= set(members[alone].tolist())
            assert together == apart
            assert len(together) < count

    @pytest.mark.parametrize(("count", "groups_of"), [(1, 1), (255, 1), (256, 4), (700, 300), (3000, 7)])
    def test_suppression_is_the_librarys_in_each_group(self, count, groups_of):
        boxes = random_boxes(count) - 40  # left of and above the picture too
        scores = torch.randint(600, 700, (count,), generator=torch.Generator().manual_seed(0)) / 1000  # many are equal
        groups = torch.arange(count) * 7919 % groups_of * 3
        kept = suppress(boxes, scores, groups, 0.5)
        expected = set()
        for group in groups.unique():
            members = torch.where(groups == group)[0]
            expected |= set(members[nms(boxes[members].double(), scores[members].double(), 0.5)].tolist())
        assert set(kept.tolist()) == expected
        assert len(kept) == len(expected)
        assert scores[kept].tolist() == sorted(scores[kept].tolist(), reverse=True)
        assert suppress(boxes[:0], scores[:0], groups[:0], 0.5).tolist() == []

    def test_workers_do_not_wait_for_the_rest_of_torchvision(self):
        code = "import sys, data_prep.mtcnn.cascade as cascade, numpy as np; "
        code += "cascade.Detector().detect([np.full((64, 64, 3), 90, np.uint8)]); print('torchvision' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.stdout.strip() == "False", done.stderr

    def test_nested_boxes_fall_to_the_surer_one(self):
        boxes, scores = random_boxes(120), torch.rand(120, generator=torch.Generator().manual_seed(0))
        groups = torch.arange(120) % 3
        expected = set()
        for group in range(3):
            stays = []
            for number in sorted(range(group, 120, 3), key=lambda n: -scores[n]):
                if all(smaller_overlap(boxes[number], boxes[other]) <= 0.7 for other in stays):
                    stays.append(number)
            expected |= set(stays)
        assert set(suppress_nested(boxes, scores, groups, 0.7).tolist()) == expected
        assert suppress_nested(boxes[:0], scores[:0], groups[:0], 0.7).tolist() == []

    def test_squares_keep_their_centre_and_the_longer_side(self):
        out = square(torch.tensor([[10.0, 20, 30, 60], [0, 0, 9, 3]]))
        assert out.tolist() == [[0, 20, 40, 60], [0, -3, 9, 6]]

    def test_regression_moves_sides_in_units_of_the_box(self):
        box = torch.tensor([[10.0, 20, 30, 60]])
        offsets = torch.tensor([[0.5, -0.5, 1, 0]])
        assert regress(box, offsets, 0).tolist() == [[20, 0, 50, 60]]
        assert regress(box, offsets, 1).tolist() == [[20.5, -0.5, 51, 60]]

    def test_pixels_are_clipped_to_the_picture(self):
        boxes = torch.tensor([[1.0, 1, 5, 5], [-3.5, 2.9, 99, 3.9], [50, 0, 60, 5]])
        inside = pixels(boxes, torch.tensor([8, 8, 8]), torch.tensor([10, 10, 10]))
        assert inside.tolist() == [[0, 0, 5, 5], [0, 1, 10, 3], [49, 0, 10, 5]]


class TestNetworks:
    @given(height=st.integers(3, 24), width=st.integers(3, 24))
    def test_pooling_is_torchs(self, height, width):
        x = torch.randn(2, 5, height, width).contiguous(memory_format=torch.channels_last)
        assert torch.equal(_pool3(x), F.max_pool2d(x, 3, 2, ceil_mode=True))
        if height % 2 == width % 2 == 0:
            assert torch.equal(_pool2(x), F.max_pool2d(x, 2))

    def test_weights_of_the_paper_are_there_in_full(self):
        networks = PNet(), RNet(), ONet()
        load_weights(**dict(zip(("pnet", "rnet", "onet"), networks, strict=True)))
        # The published models have 6,632, 100,178 and 389,040 numbers; what is padded is zero.
        for network, published in zip(networks, (6_632, 100_178, 389_040), strict=True):
            assert sum(int(values.count_nonzero()) for values in network.state_dict().values()) == published

    def test_a_network_does_not_look_at_the_fourth_channel(self):
        pnet, rnet, onet = PNet(), RNet(), ONet()
        load_weights(pnet=pnet, rnet=rnet, onet=onet)
        for network, size in ((pnet, 30), (rnet, 24), (onet, 48)):
            picture = torch.rand(2, CHANNELS, size, size)
            changed = picture.clone()
            changed[:, 3] = 7
            for a, b in zip(network(picture), network(changed), strict=True):
                assert torch.equal(a, b)

    def test_p_net_answers_for_each_window(self):
        pnet = PNet().eval()
        load_weights(pnet=pnet)
        picture = torch.rand(1, CHANNELS, 40, 52)
        logits, features = pnet(picture)
        assert logits.shape == (1, 15, 21)
        assert features.shape == (1, 15, 21, 32)
        row, column = 7, 12
        window = picture[:, :, 2 * row : 2 * row + CELL, 2 * column : 2 * column + CELL]
        alone, its_features = pnet(window)
        assert torch.allclose(alone[0, 0, 0], logits[0, row, column], atol=1e-5)
        assert torch.allclose(its_features[0, 0, 0], features[0, row, column], atol=1e-5)
