"""Alignment and uniformity of a model's embeddings, as an evaluator of Sentence Transformers."""

import csv
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ...arguments import check_positive
from ...evaluation import evaluate

try:
    from sentence_transformers.base.evaluation import BaseEvaluator
except ImportError as error:
    raise ImportError(
        "AlignmentUniformityEvaluator extends a class of Sentence Transformers: "
        f"pip install 'sentence-transformers>=6.2' ({error})"
    ) from error

logger = logging.getLogger(__name__)

_METRICS = (
    "alignment",
    "uniformity",
    "uniformity_anchors",
    "uniformity_positives",
    "uniformity_limit",
    "negative_align_uniform",
)


class AlignmentUniformityEvaluator(BaseEvaluator):
    r"""How close positive pairs are, and how evenly the embeddings of either side cover the sphere.

    .. math::
        A &= \tfrac1N \sum_i \lVert \hat x_i - \hat y_i \rVert^\alpha \\
        U &= \log \tfrac{2}{N(N-1)} \sum_{i<j} e^{-t \lVert \hat x_i - \hat x_j \rVert^2}

    Smaller is better for both, and neither tells models apart alone: a model that maps all sentences to one point has
    the best alignment, one that ignores what they mean can have the best uniformity. So the primary metric is the
    objective that has both, with the sign turned, since the library and its trainer take the largest value for the best
    one: ``negative_align_uniform``, :math:`-(A + w\,U)` with U the mean of both sides. ``greater_is_better`` is true,
    and ``metric_for_best_model="eval_<name>_negative_align_uniform"`` needs no further option.

    A call returns, with the name in front: ``alignment``, ``uniformity``, ``uniformity_anchors``,
    ``uniformity_positives``, ``uniformity_limit``, which is that of the uniform distribution on the sphere of this
    dimension (`hyperkern.metrics.uniformity_limit`), and ``negative_align_uniform``. Every pair of rows is computed,
    once, without a matrix of them.

    Args:
        anchors: N >= 2 sentences, or what else the model encodes.
        positives: the partner of each.
        t: inverse width of the Gaussian potential, > 0.
        alpha: exponent of the alignment distance, > 0.
        uniform_weight: w, > 0, of the uniformity in the primary metric.
        name: of the data set, in front of the names of the metrics.
        batch_size: sentences that are encoded together.
        show_progress_bar: whether to show how many are encoded.
        write_csv: whether a call with an ``output_path`` adds a line to a file there,
            ``alignment_uniformity_evaluation_<name>_results.csv``.
        truncate_dim: the dimensions that are kept, before rows are scaled to unit length; ``None`` for the model's.

    Raises:
        TypeError: ``t``, ``alpha`` or ``uniform_weight`` is no number.
        ValueError: one of them is not > 0, fewer than two pairs, or other numbers of anchors and positives.

    Warns:
        UserWarning: in a call, for embeddings that are zero or not finite.

    Source:
        Wang & Isola, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the
        Hypersphere", ICML 2020, Section 4.1; for sentences Gao et al., "SimCSE", EMNLP 2021, Section 2.
    """

    def __init__(
        self,
        anchors: Sequence[Any],
        positives: Sequence[Any],
        *,
        t: float = 2.0,
        alpha: float = 2.0,
        uniform_weight: float = 1.0,
        name: str = "",
        batch_size: int = 16,
        show_progress_bar: bool = False,
        write_csv: bool = True,
        truncate_dim: int | None = None,
    ) -> None:
        super().__init__()
        if len(anchors) != len(positives):
            raise ValueError(f"anchors must be as many as positives, got {len(anchors)} and {len(positives)}")
        if len(anchors) < 2:
            raise ValueError(f"anchors must be 2 or more to form a pair, got {len(anchors)}")
        self.anchors, self.positives = anchors, positives
        self.t, self.alpha = check_positive("t", t), check_positive("alpha", alpha)
        self.uniform_weight = check_positive("uniform_weight", uniform_weight)
        self.name, self.batch_size, self.show_progress_bar = name, batch_size, show_progress_bar
        self.write_csv, self.truncate_dim = write_csv, truncate_dim
        self.csv_file = "_".join(filter(None, ["alignment_uniformity_evaluation", name, "results.csv"]))
        self.csv_headers = ["epoch", "steps", *_METRICS]
        self.primary_metric = "negative_align_uniform"

    def __call__(
        self, model: Any, output_path: str | None = None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        """The metrics of a model, which are added to its model card.

        Args:
            model: a ``SentenceTransformer``.
            output_path: the folder of the CSV file, made where it is missing.
            epoch: of the training; -1 after it.
            steps: of the training; -1 for the end of the epoch.
        """
        found = evaluate(
            self.embed_inputs(model, self.anchors),
            self.embed_inputs(model, self.positives),
            t=self.t,
            alpha=self.alpha,
        )
        assert found.alignment is not None
        assert found.floor is not None
        figures = (
            found.alignment,
            found.uniformity,
            *(side.uniformity for side in found.sides),
            found.floor,
            -(found.alignment + self.uniform_weight * found.uniformity),
        )
        values = dict(zip(_METRICS, figures, strict=True))
        logger.info(
            "%s of %s after epoch %s, step %s: %s", self.description, self.name or "the data", epoch, steps, values
        )
        if output_path is not None and self.write_csv:
            self._add_line(Path(output_path), [epoch, steps, *figures])
        metrics: dict[str, float] = self.prefix_name_to_metrics(values, self.name)
        self.store_metrics_in_model_card_data(model, metrics, epoch, steps)
        return metrics

    def embed_inputs(self, model: Any, sentences: Sequence[Any], **options: Any) -> Tensor:
        """The embeddings, ``(N, D)``, on the device of the model."""
        embeddings: Tensor = model.encode(
            sentences,
            batch_size=self.batch_size,
            show_progress_bar=self.show_progress_bar,
            convert_to_tensor=True,
            normalize_embeddings=True,
            truncate_dim=self.truncate_dim,
            **options,
        )
        return embeddings

    @property
    def description(self) -> str:
        """For the model card."""
        return "Alignment and Uniformity"

    def get_config_dict(self) -> dict[str, Any]:
        """The options, for the model card."""
        options = {"t": self.t, "alpha": self.alpha, "uniform_weight": self.uniform_weight}
        return options if self.truncate_dim is None else {**options, "truncate_dim": self.truncate_dim}

    def _add_line(self, folder: Path, line: list[float]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / self.csv_file
        is_new = not path.is_file()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if is_new:
                writer.writerow(self.csv_headers)
            writer.writerow(line)
