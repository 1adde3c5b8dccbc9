"""What becomes of an image: two views to learn from, and what the linear classifier sees."""

from __future__ import annotations

import torch
from PIL import ImageFilter
from PIL.Image import Image
from torch import Tensor, nn
from torchvision import transforms

# Mean and deviation of the channels over ImageNet.
NORMALIZE = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


class Blur(nn.Module):
    """A Gaussian blur of a random width between 0.1 and 2 pixels, as SimCLR has it."""

    def forward(self, image: Image) -> Image:
        """The blurred image."""
        width = torch.empty(()).uniform_(0.1, 2.0).item()
        return image.filter(ImageFilter.GaussianBlur(width))


def augmentation(crop: int, *, strong: bool) -> transforms.Compose:
    """A random view of an image, as MoCo draws it, or MoCo v2 if ``strong``.

    Args:
        crop: side of the view.
        strong: less hue, colours left alone at times, blur at times.

    Source:
        Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018; Chen et al.,
        "Improved Baselines with Momentum Contrastive Learning", 2020.
    """
    if strong:
        colours = [
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            transforms.RandomGrayscale(p=0.2),
            transforms.RandomApply([Blur()], p=0.5),
        ]
    else:
        colours = [transforms.RandomGrayscale(p=0.2), transforms.ColorJitter(0.4, 0.4, 0.4, 0.4)]
    resized = transforms.RandomResizedCrop(crop, scale=(0.2, 1.0))
    return transforms.Compose([resized, *colours, transforms.RandomHorizontalFlip(), transforms.ToTensor(), NORMALIZE])


class TwoViews:
    """Two views of an image, of which one becomes the query and one the key."""

    def __init__(self, view: transforms.Compose) -> None:
        self.view = view

    def __call__(self, image: Image) -> tuple[Tensor, Tensor]:
        """Both, ``(3, crop, crop)``."""
        return self.view(image), self.view(image)


def of_classifier(crop: int, *, training: bool) -> transforms.Compose:
    """What the linear classifier sees: random parts in training, else the centre of the image."""
    if training:
        chosen = [transforms.RandomResizedCrop(crop), transforms.RandomHorizontalFlip()]
    else:
        chosen = [transforms.Resize(round(crop * 256 / 224)), transforms.CenterCrop(crop)]
    return transforms.Compose([*chosen, transforms.ToTensor(), NORMALIZE])
