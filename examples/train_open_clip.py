"""OpenCLIP: a tiny CLIP learns to read. The loop is that of any CLIP; the lines that hyperkern changes are marked.

::

    python examples/train_open_clip.py

An image is four handwritten digits, its caption the number in words, "four zero seven one". It is then asked to read
numbers that it has not seen, in other handwriting.
"""

import argparse
from collections.abc import Sequence

import torch
from open_clip import CLIP, SimpleTokenizer
from torch import Tensor
from written_numbers import WORDS, Numbers

# hyperkern: was from open_clip.loss import ClipLoss
from hyperkern.integrations.open_clip import ClipLoss

VISION = {"image_size": 16, "patch_size": 4, "width": 64, "layers": 2, "head_width": 32}
TEXT = {"context_length": 6, "vocab_size": 49408, "width": 64, "layers": 2, "heads": 2}
TOKENIZER = SimpleTokenizer(context_length=TEXT["context_length"])


def batch_of(numbers: Numbers, count: int) -> tuple[Tensor, Tensor]:
    """Images and the tokens of their captions."""
    images, digits = numbers.draw(count)
    return images, TOKENIZER([" ".join(WORDS[digit] for digit in number) for number in digits])


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Train, and read held-out numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200, help="(%(default)s)")
    parser.add_argument("--batch", type=int, default=128, help="pairs of a step (%(default)s)")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    train = Numbers(held_out=False)
    model = CLIP(embed_dim=64, vision_cfg=VISION, text_cfg=TEXT)
    loss_of = ClipLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for step in range(1, options.steps + 1):
        image_features, text_features, logit_scale = model(*batch_of(train, options.batch))
        loss = loss_of(image_features, text_features, logit_scale)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6052)  # as OpenCLIP does: a factor of at most 100
        losses.append(loss.item())
        if step % max(1, options.steps // 5) == 0:
            print(f"step {step:3}: loss {losses[-1]:.4f}, logit scale {logit_scale.item():.2f}", flush=True)

    model.eval()
    with torch.no_grad():
        image_features, text_features, _ = model(*batch_of(Numbers(held_out=True), 100))
    read = (image_features @ text_features.T).argmax(1) == torch.arange(100)
    print(f"{100 * read.float().mean():.0f} of 100 held-out numbers are read, 1 would be by chance")
    return losses


if __name__ == "__main__":
    main()
