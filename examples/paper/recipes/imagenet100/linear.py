"""Linear evaluation: a classifier of the frozen encoder's features."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import Checkpoint
from ..session import Session
from .data import SomeClasses, to_device, training_batches, validation_batches
from .encoder import Encoder
from .views import of_classifier


def linear_evaluation(
    encoder: Encoder, options: argparse.Namespace, session: Session, classes: Sequence[str], recipe: Mapping[str, Any]
) -> dict[str, float]:
    """Train a linear classifier of the trunk's output, from its checkpoint if there is one, and evaluate it.

    The trunk keeps weights and batch statistics; the classifier sees other parts of the images in every epoch.

    Args:
        encoder: of which the trunk is evaluated.
        options: of the command line.
        session: of this process.
        classes: to tell apart.
        recipe: options that the checkpoint is to agree with.

    Returns:
        Accuracy on the validation images after the last epoch, in percent.

    Raises:
        OptionError: the checkpoint is of other options.
        FloatingPointError: the loss became infinite or NaN.
    """
    training, validation = (
        SomeClasses(options.data, split, classes, of_classifier(options.crop, training=split == "train"))
        for split in ("train", "val")
    )
    trunk = encoder.trunk.eval().requires_grad_(False)
    classifier = nn.Linear(encoder.width, len(classes))
    nn.init.normal_(classifier.weight, std=0.01, generator=torch.Generator().manual_seed(options.seed))
    nn.init.zeros_(classifier.bias)
    classifier.to(session.device)
    optimizer = torch.optim.SGD(classifier.parameters(), lr=options.linear_lr, momentum=0.9)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, options.linear_schedule, gamma=options.linear_decay)
    path = options.out / "linear.pt"
    checkpoint = Checkpoint(path, recipe, {"classifier": classifier, "optimizer": optimizer, "schedule": schedule})
    done = checkpoint.load(session)
    parallel = session.parallel(classifier)
    for epoch in range(done, options.linear_epochs):
        batches = training_batches(training, options, "linear-batch", session, epoch, drop_last=False)
        losses: list[Tensor] = []
        for images, labels in islice(batches, options.steps):
            with torch.no_grad():
                features = trunk(to_device(images, session))
            loss = nn.functional.cross_entropy(parallel(features), to_device(labels, session))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        mean = session.mean(torch.stack(losses).mean().item())
        if not math.isfinite(mean):
            raise FloatingPointError(f"the loss is {mean} in epoch {epoch + 1}: a lower --linear-lr may help")
        schedule.step()
        checkpoint.save(epoch + 1, session)
        session.say(f"linear classifier, epoch {epoch + 1} of {options.linear_epochs}: loss {mean:.4f}")
    return accuracy(nn.Sequential(trunk, classifier), validation, options, session)


@torch.no_grad()
def accuracy(model: nn.Module, images: SomeClasses, options: argparse.Namespace, session: Session) -> dict[str, float]:
    """How often the class of an image is the first, or among the first five, in percent."""
    seen = torch.zeros(3, dtype=torch.float64, device=session.device)
    batch = session.share("linear-batch", options.linear_batch)
    for views, labels in islice(validation_batches(images, batch, options, session), options.steps):
        scores = model(to_device(views, session))
        hits = scores.topk(min(5, scores.shape[1])).indices == to_device(labels, session).unsqueeze(1)
        seen += torch.stack([hits[:, 0].sum(), hits.sum(), hits.new_tensor(len(hits), dtype=torch.int64)])
    first, five, count = (session.mean(number) for number in seen.tolist())
    return {"top-1 (%)": 100 * first / count, "top-5 (%)": 100 * five / count}
