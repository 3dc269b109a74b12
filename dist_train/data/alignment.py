"""Faces to the square that recognition networks are trained on, by five landmarks."""

import cv2
import numpy as np

# Left eye, right eye, nose, left and right corner of the mouth in a picture of 112 x 112 pixels, as in InsightFace.
TEMPLATE_112 = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)


def similarity_transform(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Rotation, scale and shift [2, 3] that bring `source` [n, 2] nearest to `target` [n, 2] by least squares.

    Umeyama 1991, equations 40 to 42; never a reflection.
    """
    source_mean, target_mean = source.mean(axis=0), target.mean(axis=0)
    centered, wanted = source - source_mean, target - target_mean
    u, values, vt = np.linalg.svd(wanted.T @ centered / len(source))
    signs = np.array([1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt)) or 1.0])
    rotation = u @ np.diag(signs) @ vt
    scale = (values * signs).sum() / max(centered.var(axis=0).sum(), 1e-12)
    return np.column_stack([scale * rotation, target_mean - scale * rotation @ source_mean])


def align_face(picture: np.ndarray, landmarks: np.ndarray, image_size: int) -> np.ndarray:
    """The face at `landmarks` [5, 2] (pixels: x, y) of a picture [H, W, 3], as a square of `image_size` pixels."""
    matrix = similarity_transform(landmarks, TEMPLATE_112 * (image_size / 112))
    return cv2.warpAffine(picture, matrix, (image_size, image_size), flags=cv2.INTER_LINEAR, borderValue=0)
