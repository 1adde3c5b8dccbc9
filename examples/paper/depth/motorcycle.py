"""The stereo picture that scikit-image carries, cut into windows, with the depths of its calibration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import skimage.data
import skimage.io
import torch

from .views import Scenes

# Of the picture, see `skimage.data.stereo_motorcycle`: depth = focal length · baseline / (disparity + offset).
FOCAL_PIXELS = 994.978
BASELINE_METRES = 0.193001
OFFSET_PIXELS = 31.086

TILES = (8, 12)  # rows and columns that the picture is cut into
WINDOW = 40
TRAIN_STRIDE, HELD_OUT_STRIDE = 8, 20


def load() -> tuple[Scenes, Scenes]:
    """Windows to train on and windows to evaluate on, of tiles that have no pixel in common.

    The files are read where the package has them: nothing is downloaded.

    Returns:
        Both, images ``(N, 3, 40, 40)``; every third tile is held out, in a pattern of diagonals.
    """
    folder = Path(skimage.data.__file__).parent
    picture = torch.from_numpy(skimage.io.imread(folder / "motorcycle_left.png")).permute(2, 0, 1)
    with np.load(folder / "motorcycle_disp.npz") as file:
        disparity = torch.from_numpy(file["arr_0"])[None]
    depth = FOCAL_PIXELS * BASELINE_METRES / (disparity + OFFSET_PIXELS)
    depth[~torch.isfinite(disparity)] = torch.nan
    rows, columns = TILES
    train, held_out = [], []
    for row, band in enumerate(zip(picture.tensor_split(rows, 1), depth.tensor_split(rows, 1), strict=True)):
        images, depths = (part.tensor_split(columns, 2) for part in band)
        for column, tile in enumerate(zip(images, depths, strict=True)):
            if (row + column) % 3:
                train.append(_windows(*tile, TRAIN_STRIDE))
            else:
                held_out.append(_windows(*tile, HELD_OUT_STRIDE))
    return _joined(train), _joined(held_out)


def _windows(image: torch.Tensor, depth: torch.Tensor, stride: int) -> Scenes:
    both = torch.cat([image.float(), depth])
    windows = both.unfold(1, WINDOW, stride).unfold(2, WINDOW, stride)  # (4, rows, columns, 40, 40)
    windows = windows.permute(1, 2, 0, 3, 4).flatten(0, 1)
    return Scenes(windows[:, :3].to(torch.uint8), windows[:, 3:].contiguous())


def _joined(parts: list[Scenes]) -> Scenes:
    return Scenes(torch.cat([part.images for part in parts]), torch.cat([part.depths for part in parts]))
