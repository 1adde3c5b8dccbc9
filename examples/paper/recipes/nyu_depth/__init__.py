"""The paper's experiment on NYU-Depth V2: an encoder trained without depths, depths from what is inside of it.

As appendix B.1 of the paper has it: the encoder sees the training images alone, positive pairs are two random views of
an image (resized crop, flip, colour jitter, greyscale), 128 images a batch, SGD over 400 epochs at a rate of 0.12 for
each 256 images, momentum 0.9, weight decay 0.0001, a tenth of the rate at epochs 310, 340 and 370; 128 dimensions. The
depth predictor is that of Table 6, on the frozen activations of conv5 or conv4: Adam over 120 epochs, 128 images a
batch, a rate of 0.003, a fifth of it at 70, 90, 100 and 110, beta 0.5 and 0.999. The official 795 and 654 images.

What the paper leaves to Tian et al. (2019) or does not state was chosen: convolutions and linear layers as on STL-10,
pools padded so that an image is halved exactly, images of 64 x 64 (``--size``); depths in metres, averaged to the size
of the images; for the predictor the shorter side is 70/64 of this, crops are random and mirrored in training, of the
middle in evaluation; "conv5" is the activation after batch norm, ReLU and pool.
"""

from .command import main

__all__ = ["main"]
