"""The cascade in its plain form, a picture and a candidate at a time: what the batched one is compared with."""

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torchvision.ops import nms

from data_prep.mtcnn.networks import ONet, PNet, RNet
from data_prep.mtcnn.weights import load_weights


def resized(picture, height, width):
    """[3, H, W] float -> [1, 4, height, width], normalised, with an empty channel."""
    small = (F.adaptive_avg_pool2d(picture[None], (height, width)) - 127.5) / 128
    return F.pad(small, (0, 0, 0, 0, 0, 1))


def squared(box):
    left, top, right, bottom = box.tolist()
    width, height = right - left, bottom - top
    side = max(width, height)
    left, top = left + width / 2 - side / 2, top + height / 2 - side / 2
    return torch.tensor([left, top, left + side, top + side])


def cut(picture, box, size):
    left, top, right, bottom = (int(side) for side in box.tolist())
    crop = picture[:, max(top, 1) - 1 : max(bottom, 0), max(left, 1) - 1 : max(right, 0)]
    return resized(crop, size, size) if crop.numel() else None


def moved(box, offsets, extra):
    width, height = box[2] - box[0] + extra, box[3] - box[1] + extra
    return box + offsets * torch.stack([width, height, width, height])


def smaller_overlap(a, b):
    shared = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2]) + 1).clamp(min=0).prod()
    return float(shared / min((a[2:] - a[:2] + 1).prod(), (b[2:] - b[:2] + 1).prod()))


@torch.no_grad()
def detect(image, min_face_px=20, thresholds=(0.6, 0.7, 0.7), factor=0.709):
    """Faces of one picture [H, W, 3] as a list of (box, score, landmarks), the surest first."""
    pnet, rnet, onet = PNet().eval(), RNet().eval(), ONet().eval()
    load_weights(pnet=pnet, rnet=rnet, onet=onet)
    picture = torch.from_numpy(image).permute(2, 0, 1).float()
    height, width = image.shape[:2]

    found = []  # box, score, offsets
    scale = 12 / min_face_px
    while min(height, width) * scale >= 12:
        level = resized(picture, int(height * scale + 1), int(width * scale + 1))
        level = F.pad(level, (0, level.shape[3] % 2, 0, level.shape[2] % 2), mode="replicate")
        logits, features = pnet(level)
        at_level = []
        for row, column in (logits[0].sigmoid() >= thresholds[0]).nonzero().tolist():
            x, y = 2 * column + 1, 2 * row + 1
            box = (torch.tensor([x, y, x + 11, y + 11], dtype=torch.float32) / scale).floor()
            at_level.append((box, logits[0, row, column].sigmoid(), pnet.box(features[0, row, column])))
        found += kept(at_level, 0.5)
        scale *= factor
    candidates = [squared(moved(box, offsets, 0)) for box, _, offsets in kept(found, 0.7)]

    found = []
    for box in candidates:
        if (crop := cut(picture, box, 24)) is not None:
            logits, offsets = rnet(crop)
            score = logits.softmax(1)[0, 1]
            if score > thresholds[1]:
                found.append((box, score, offsets[0]))
    candidates = [squared(moved(box, offsets, 1)) for box, _, offsets in kept(found, 0.7)]

    found = []
    for box in candidates:
        if (crop := cut(picture, box, 48)) is not None:
            logits, offsets, points = onet(crop)
            score = logits.softmax(1)[0, 1]
            if score > thresholds[2]:
                places = points[0] * (box[2:] - box[:2] + 1) + box[:2] - 1
                found.append((moved(box, offsets[0], 1), score, places))
    faces = []
    for face in sorted(found, key=lambda face: -face[1]):
        if all(smaller_overlap(face[0], better[0]) <= 0.7 for better in faces):
            faces.append(face)
    return faces


def kept(found, overlap):
    if not found:
        return []
    boxes, scores = torch.stack([item[0] for item in found]), torch.stack([item[1] for item in found])
    return [found[number] for number in nms(boxes, scores, overlap).tolist()]
