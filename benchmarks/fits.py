"""Short fits in the trainers that people have: each in its own loop, of a tiny model, with a loss that it is given.

What the tests hold against the originals step by step, and what ``python -m benchmarks trainers`` times. Nothing is
loaded: models are made of configurations, samples are drawn. Where there is a process group, each process takes samples
of its own, and the trainer averages the gradients.

A fit hands its model to ``loss_of``, and what that returns is called as the trainer calls its losses.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, TensorDataset

SIDE, TOKENS, WORDS = 16, 8, 64
HEADS = 2
# Noise of the views of an image, and of images of a class, whose labels would soon be learned.
NEAR, FAR = 1.0, 3.0


@dataclass(frozen=True)
class Plan:
    """What a fit is asked for.

    Attributes:
        batch: samples of a step in each process.
        steps: of the optimizer.
        dim: of the embeddings.
        width: of the encoders.
        optimizer: ``"sgd"`` or ``"adamw"``.
        rate: the learning rate.
        dtype: ``"float32"``, or ``"bfloat16"`` for the trainer's mixed precision.
    """

    batch: int = 16
    steps: int = 10
    dim: int = 32
    width: int = 32
    optimizer: str = "sgd"
    rate: float = 0.02
    dtype: str = "float32"

    @property
    def samples(self) -> int:
        """Of all steps."""
        return self.batch * self.steps

    def optimizer_of(self, parameters: Any) -> torch.optim.Optimizer:
        """For trainers that are given one."""
        kind = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[self.optimizer]
        return kind(parameters, lr=self.rate)


LossOf = Callable[[nn.Module], Any]
Fit = Callable[[LossOf, Plan], None]


def place() -> tuple[int, int]:
    """Rank, and number of processes."""
    several = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if several else (0, 1)


def _draw() -> torch.Generator:
    """For the samples of this process."""
    return torch.Generator().manual_seed(1 + place()[0])


def views(plan: Plan, noise: float) -> Dataset[Any]:
    """Two views of random images ``(3, 16, 16)``, two of each class, with noise, and their labels."""
    draw, count = _draw(), plan.samples
    labels = torch.arange(count) // 2 % (plan.batch // 2)
    images = torch.randn(len(labels.unique()), 3, SIDE, SIDE, generator=draw)[labels]
    return TensorDataset(*(images + noise * torch.randn(2, *images.shape, generator=draw)), labels)


def captions(plan: Plan) -> tuple[Tensor, Tensor]:
    """Images, and the words ``(N, 8)`` that name them, between the least and the largest number of the vocabulary."""
    draw = _draw()
    words = torch.randint(1, WORDS - 1, (plan.samples, TOKENS), generator=draw)
    words[:, 0], words[:, -1] = 0, WORDS - 1
    meanings = torch.randn(WORDS, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    return meanings[words].mean(1) + 0.3 * torch.randn(plan.samples, 3, SIDE, SIDE, generator=draw), words


def encoder(plan: Plan) -> nn.Module:
    """Of images: patches, and a projection head."""
    patches = nn.Conv2d(3, plan.width, SIDE // 4, stride=SIDE // 4)
    hidden = nn.Linear(16 * plan.width, 4 * plan.width)
    return nn.Sequential(patches, nn.GELU(), nn.Flatten(), hidden, nn.GELU(), nn.Linear(4 * plan.width, plan.dim))


def _distributed(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(model) if place()[1] > 1 else model


# ---- loops of PyTorch ------------------------------------------------------------------------------------------------


def plain(loss_of: LossOf, plan: Plan) -> None:
    """A loop as one writes it, in several processes with `DistributedDataParallel`."""
    _loop(_distributed(encoder(plan)), loss_of, plan)


def fully_sharded(loss_of: LossOf, plan: Plan) -> None:
    """The same with `fully_shard` in place of it."""
    from torch.distributed.fsdp import fully_shard

    model = encoder(plan)
    for layer in model:
        if any(True for _ in layer.parameters()):
            fully_shard(layer)
    _loop(fully_shard(model), loss_of, plan)


def _loop(model: nn.Module, loss_of: LossOf, plan: Plan) -> None:
    loss, optimizer = loss_of(model), plan.optimizer_of(model.parameters())
    for first, second, _ in DataLoader(views(plan, NEAR), plan.batch):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=plan.dtype == "bfloat16"):
            value = loss(model(first), model(second))
        value.backward()
        optimizer.step()


def labelled(loss_of: LossOf, plan: Plan) -> None:
    """A loop as one writes it, of one view and its label."""
    model = encoder(plan)
    loss, optimizer = loss_of(model), plan.optimizer_of(model.parameters())
    for images, _, labels in DataLoader(views(plan, FAR), plan.batch):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=plan.dtype == "bfloat16"):
            value = loss(model(images), labels)
        value.backward()
        optimizer.step()


def metric_learning(loss_of: LossOf, plan: Plan) -> None:
    """`MetricLossOnly` of PyTorch Metric Learning."""
    from pytorch_metric_learning.trainers import MetricLossOnly

    model, images = encoder(plan), views(plan, FAR)
    MetricLossOnly(
        models={"trunk": model},
        optimizers={"trunk_optimizer": plan.optimizer_of(model.parameters())},
        batch_size=plan.batch,
        loss_funcs={"metric_loss": loss_of(model)},
        dataset=images,
        data_device=torch.device("cpu"),
        dataloader_num_workers=0,
        data_and_label_getter=lambda sample: (sample[0], sample[2]),
        set_min_label_to_zero=True,
        dataset_labels=images.tensors[2].tolist(),
    ).train()


# ---- trainers of libraries -------------------------------------------------------------------------------------------


def open_clip(loss_of: LossOf, plan: Plan, bias: float | None = None) -> None:
    """`train_one_epoch` of OpenCLIP, of its model."""
    from open_clip import CLIP
    from open_clip_train.train import train_one_epoch

    both = {"width": plan.width, "layers": 1}
    image = {**both, "image_size": SIDE, "patch_size": SIDE // 2, "head_width": plan.width // HEADS}
    text = {**both, "context_length": TOKENS, "vocab_size": WORDS, "heads": HEADS}
    # SigLIP's own start, of which 14.3 is no part.
    scale = {} if bias is None else {"init_logit_bias": bias, "init_logit_scale": 2.3}
    model = _distributed(CLIP(plan.dim, image, text, output_dict=True, **scale))
    rank, size = place()
    loader = DataLoader(TensorDataset(*captions(plan)), plan.batch)
    loader.num_batches, loader.num_samples = plan.steps, plan.samples * size
    options = {"device": "cpu", "precision": {"float32": "fp32", "bfloat16": "amp_bf16"}[plan.dtype]}
    options |= {"rank": rank, "local_rank": rank, "world_size": size, "batch_size": plan.batch}
    options |= dict.fromkeys(("distill", "horovod", "distributed", "wandb", "trackio"), False)
    options |= {"accum_freq": 1, "grad_clip_norm": None, "skip_scheduler": True, "log_every_n_steps": 1 << 30}
    data = {"train": SimpleNamespace(dataloader=loader, set_epoch=lambda epoch: None)}
    optimizer = plan.optimizer_of(model.parameters())
    train_one_epoch(model, data, loss_of(model), 0, optimizer, None, None, None, SimpleNamespace(**options))


def lightning(loss_of: LossOf, plan: Plan) -> None:
    """Lightning's `Trainer`."""
    from lightning.fabric.plugins.environments import TorchElasticEnvironment
    from lightning.pytorch import LightningModule, Trainer

    class TwoViews(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder(plan)
            self.loss = loss_of(self.encoder)

        def training_step(self, batch: Any, index: int) -> Tensor:
            first, second, _ = batch
            return self.loss(self.encoder(first), self.encoder(second))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return plan.optimizer_of(self.parameters())

    size = place()[1]
    several = {"devices": size, "strategy": "ddp", "plugins": [TorchElasticEnvironment()]} if size > 1 else {}
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    options = {"accelerator": "cpu", "devices": 1, "max_steps": plan.steps, "use_distributed_sampler": False}
    precision = {"float32": "32-true", "bfloat16": "bf16-mixed"}[plan.dtype]
    with _launched():
        trainer = Trainer(**options | several | quiet, precision=precision)
        trainer.fit(TwoViews(), DataLoader(views(plan, NEAR), plan.batch))


def sentence_transformers(loss_of: LossOf, plan: Plan) -> None:
    """`SentenceTransformerTrainer`, of a BERT."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers import SentenceTransformerTrainingArguments as Arguments

    with tempfile.TemporaryDirectory() as folder, _launched():
        model = SentenceTransformer(modules=_bert(Path(folder), plan), device="cpu")
        pairs = torch.randint(WORDS, (2, plan.samples, TOKENS - 2), generator=_draw())
        pairs[1, :, ::2] = pairs[0, :, ::2]
        columns = ([" ".join(f"w{word}" for word in line) for line in side.tolist()] for side in pairs)
        data = Dataset.from_dict(dict(zip(("anchor", "positive"), columns, strict=True)))
        arguments = Arguments(folder, **_arguments(plan))
        SentenceTransformerTrainer(model=model, args=arguments, train_dataset=data, loss=loss_of(model)).train()


def _bert(folder: Path, plan: Plan) -> list[nn.Module]:
    """The modules: a BERT of some words, the mean of its tokens, and a projection to the embedding."""
    from safetensors.torch import save_file
    from sentence_transformers import models
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(WORDS))]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=plan.width,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        intermediate_size=4 * plan.width,
        max_position_embeddings=TOKENS,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    # By hand: of several processes the model's own method lets one write, and each has a folder.
    (folder / "config.json").write_text(config.to_json_string(use_diff=False), encoding="utf-8")
    save_file(BertModel(config).state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    transformer = models.Transformer(str(folder), max_seq_length=TOKENS)
    return [transformer, models.Pooling(plan.width), models.Dense(plan.width, plan.dim)]


def transformers(loss_of: LossOf, plan: Plan) -> None:
    """`Trainer` of Transformers, of its CLIP.

    The loss is called with what the trainer computes, what the drop-in does of this process, the model and its inputs.
    """
    from transformers import CLIPConfig, CLIPModel, Trainer, TrainingArguments

    from hyperkern.integrations.transformers import ContrastiveTrainerMixin

    class WithLoss(ContrastiveTrainerMixin, Trainer):
        def contrastive_group(self) -> None:
            return None

        def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **options: Any) -> Tensor:
            usual, drop_in = (
                lambda before=before: super(before, self).compute_loss(model, inputs, *args, **options)
                for before in (ContrastiveTrainerMixin, WithLoss)
            )
            return loss(usual, drop_in, model, inputs)

    both = {"hidden_size": plan.width, "intermediate_size": 4 * plan.width, "num_hidden_layers": 1}
    both |= {"num_attention_heads": HEADS}
    image = {**both, "image_size": SIDE, "patch_size": SIDE // 2}
    text = {**both, "vocab_size": WORDS, "max_position_embeddings": TOKENS, "eos_token_id": WORDS - 1}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=image, projection_dim=plan.dim))
    loss = loss_of(model)
    images, words = captions(plan)
    samples = [{"pixel_values": image, "input_ids": line} for image, line in zip(images, words, strict=True)]

    def collate(rows: list[dict[str, Tensor]]) -> dict[str, Any]:
        return {key: torch.stack([row[key] for row in rows]) for key in rows[0]} | {"return_loss": True}

    with tempfile.TemporaryDirectory() as folder, _launched():
        arguments = TrainingArguments(folder, **_arguments(plan))
        WithLoss(model=model, args=arguments, train_dataset=samples, data_collator=collate).train()


def _arguments(plan: Plan) -> dict[str, Any]:
    """Of the trainers of Transformers: nothing is shown or saved."""
    return {
        "max_steps": plan.steps,
        "per_device_train_batch_size": plan.batch,
        "learning_rate": plan.rate,
        "lr_scheduler_type": "constant",
        "optim": {"sgd": "sgd", "adamw": "adamw_torch"}[plan.optimizer],
        "bf16": plan.dtype == "bfloat16",
        "use_cpu": True,
        "max_grad_norm": 0.0,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


@contextmanager
def _launched() -> Iterator[None]:
    """In a launcher's environment, where there are several processes; what a trainer notes of it is forgotten."""
    rank, size = place()
    if size == 1:
        yield
        return
    from accelerate.state import AcceleratorState

    made = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "GROUP_RANK": 0}
    made |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 29500}
    before = dict(os.environ)
    os.environ.update({name: str(value) for name, value in made.items()})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        AcceleratorState._reset_state(reset_partial_state=True)
