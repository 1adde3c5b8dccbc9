"""The labelled part of NYU-Depth V2."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import scipy.io
import torch
from numpy.typing import NDArray

from examples.digits.config import OptionError

from ...depth.views import Scenes

FILE = "nyu_depth_v2_labeled.mat"
SPLITS = "splits.mat"
HOME = "https://cs.nyu.edu/~silberman/datasets/nyu_depth_v2.html"
TRAIN_SHARE = 795 / 1449
SPLIT_SEED = 0


class Data(NamedTuple):
    """Images and depths of both halves of the split, and whether it is the official one."""

    train: Scenes
    held_out: Scenes
    official: bool


def load(folder: Path) -> Data:
    """Read the file and split it.

    Args:
        folder: with nyu_depth_v2_labeled.mat, and with splits.mat for the official split. Without the latter whole
            scenes are drawn for training until it has its share of the images, the same ones every time.

    Raises:
        OptionError: a file is missing or has something else in it; it is named, and where it can be had.
    """
    path = folder / FILE
    if not path.is_file():
        raise OptionError("data", folder, f"must be a folder with {FILE} (2.8 GB, {HOME}); there is none")
    try:
        with h5py.File(path) as file:
            images, depths = _dataset(file, path, "images", 4), _dataset(file, path, "depths", 3)
            rows = len(images)
            if images.shape[1] != 3 or images.dtype != np.uint8 or depths.shape != (rows, *images.shape[2:]):
                shapes = f"images {images.shape} of {images.dtype} and depths {depths.shape}"
                raise OptionError(
                    "data", path, f"must have images (N, 3, W, H) of uint8, depths (N, W, H), has {shapes}"
                )
            splits = folder / SPLITS
            train, held_out = official_split(splits, rows) if splits.is_file() else scene_split(file, path)
            return Data(_read(images, depths, train), _read(images, depths, held_out), splits.is_file())
    except OSError as error:
        raise OptionError("data", path, f"must be the HDF5 file of {HOME} ({error})") from error


def official_split(path: Path, rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The indices of training and evaluation, from a file whose ones count from 1.

    Raises:
        OptionError: it is no such file, or does not fit the images.
    """
    try:
        content = scipy.io.loadmat(path)
        train, held_out = (content[name].ravel().astype(np.int64) - 1 for name in ("trainNdxs", "testNdxs"))
    except (ValueError, KeyError, NotImplementedError, OSError) as error:
        raise OptionError("data", path, f"must have trainNdxs and testNdxs, as that of {HOME} has ({error})") from error
    both = np.concatenate([train, held_out])
    if not len(train) or not len(held_out) or len(np.unique(both)) != len(both) or both.min() < 0 or both.max() >= rows:
        raise OptionError(
            "data", path, f"must split {rows} images in two, has {len(train)} and {len(held_out)} indices"
        )
    return train, held_out


def scene_split(file: h5py.File, path: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A split of our own, of whole scenes.

    Raises:
        OptionError: the file does not say which image is of which scene, or all are of one.
    """
    if "scenes" not in file:
        raise OptionError("data", path, f"must have scenes if there is no {SPLITS} beside it (both: {HOME})")
    names = np.array(["".join(map(chr, file[one][()].ravel())) for one in file["scenes"][()].ravel()])
    order = np.random.default_rng(SPLIT_SEED).permutation(np.unique(names))
    counts = np.cumsum([(names == name).sum() for name in order])
    in_train = np.isin(names, order[: max(1, np.searchsorted(counts, TRAIN_SHARE * len(names), side="right"))])
    if in_train.all():
        raise OptionError("data", path, f"must have images of several scenes if there is no {SPLITS} beside it")
    return np.flatnonzero(in_train), np.flatnonzero(~in_train)


def _dataset(file: h5py.File, path: Path, name: str, dimensions: int) -> Any:
    found = file.get(name)
    if not isinstance(found, h5py.Dataset) or found.ndim != dimensions:
        raise OptionError("data", path, f"must have {name} of {dimensions} dimensions; is it {FILE} of {HOME}?")
    return found


def _read(images: Any, depths: Any, rows: NDArray[np.int64]) -> Scenes:
    """MATLAB keeps width before height."""
    pixels = torch.stack([torch.from_numpy(images[row]).transpose(1, 2).contiguous() for row in rows])
    metres = torch.stack([torch.from_numpy(depths[row].astype(np.float32)).T[None].contiguous() for row in rows])
    return Scenes(pixels, metres)
