"""What the modules share: options as attributes, a scale that can be learned."""

import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import REDUCTIONS, check_choice, check_positive
from ..backends import forced
from ..distributed import GroupLike, as_group


class Loss(nn.Module):
    """A module that keeps the options of its constructor as attributes of the same names, and shows them."""

    def __init__(self, backend: str | None, group: GroupLike = None) -> None:
        super().__init__()
        forced(backend)  # a wrong name is refused here, not in the first step
        self.backend, self.group = backend, as_group(group)

    def extra_repr(self) -> str:
        """The options as they were given."""
        names = inspect.signature(type(self)).parameters
        shown = {name: getattr(self, name) for name in names}
        if shown.get("group", self) is None:
            del shown["group"]
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())


class ScaledLoss(Loss):
    """A loss with a logit scale that can be learned, as CLIP does: by its logarithm, and bounded."""

    def __init__(
        self,
        logit_scale: float,
        learnable: bool,
        max_logit_scale: float,
        backend: str | None,
        group: GroupLike = None,
    ) -> None:
        super().__init__(backend, group)
        max_logit_scale = check_positive("max_logit_scale", max_logit_scale)
        if learnable and logit_scale > max_logit_scale:
            raise ValueError(f"logit_scale must not exceed max_logit_scale={max_logit_scale}, got {logit_scale}")
        self.learnable, self.max_logit_scale = learnable, max_logit_scale
        self.log_logit_scale = nn.Parameter(torch.tensor(math.log(logit_scale))) if learnable else None

    def learned_scale(self) -> Tensor | None:
        """The learned scale, bounded; ``None`` where it is not learned."""
        if self.log_logit_scale is None:
            return None
        # The parameter itself is brought back: behind a clamp it would have no gradient to return by.
        with torch.no_grad():
            self.log_logit_scale.clamp_(max=math.log(self.max_logit_scale))
        return self.log_logit_scale.exp()


class TemperatureLoss(ScaledLoss):
    """A loss with a temperature that can be learned, and with a reduction over rows."""

    def __init__(
        self,
        *,
        temperature: float = 0.1,
        learnable: bool = False,
        max_logit_scale: float = 100.0,
        normalize: bool = True,
        reduction: str = "mean",
        group: GroupLike = None,
        backend: str | None = None,
    ) -> None:
        temperature = check_positive("temperature", temperature)
        check_choice("reduction", reduction, REDUCTIONS)
        super().__init__(1 / temperature, learnable, max_logit_scale, backend, group)
        self.temperature, self.normalize, self.reduction = temperature, normalize, reduction

    def options(self) -> dict[str, Any]:
        """The arguments that the function of every such loss has."""
        scale = self.learned_scale()
        return {
            "temperature": self.temperature if scale is None else 1 / scale,
            "normalize": self.normalize,
            "reduction": self.reduction,
            "group": self.group,
            "backend": self.backend,
        }
