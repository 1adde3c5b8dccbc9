"""What the tests of the mixin and the callback for `Trainer` share: tiny models, their data, a trainer."""

import tempfile
from typing import Any

import torch
from parity import library
from torch import Tensor, nn

SIDE, PATCH, TOKENS, VOCABULARY = 8, 4, 5, 30

TEXT = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 16,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
}


def tiny(kind: str, **options: Any) -> nn.Module:
    """A model of a few thousand random parameters, in float64."""
    transformers = library("transformers")
    config = getattr(transformers, f"{kind}Config")
    text, vision = dict(TEXT), dict(VISION)
    if kind == "AltCLIP":
        text |= {"project_dim": 16, "type_vocab_size": 1}
    if kind == "ChineseCLIP":
        text |= {"type_vocab_size": 2}
    if kind == "Siglip2":
        vision |= {"num_patches": (SIDE // PATCH) ** 2}
        del vision["image_size"]
    if not kind.startswith("Siglip"):
        text["projection_dim"] = vision["projection_dim"] = 12
        options["projection_dim"] = 12
    torch.manual_seed(1)
    model = getattr(transformers, f"{kind}Model")(config(text_config=text, vision_config=vision, **options))
    with torch.no_grad():  # of a size that makes the loss and its gradient no rounding
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
        model.logit_scale.fill_(1.0)
        if hasattr(model, "logit_bias"):
            model.logit_bias.fill_(-1.0)
    return model.double()


class Pairs(torch.utils.data.Dataset):
    """Images and their texts."""

    def __init__(self, count: int, siglip2: bool = False) -> None:
        generator = torch.Generator().manual_seed(count)
        self.images = torch.randn(count, 3, SIDE, SIDE, generator=generator, dtype=torch.float64)
        self.texts = torch.randint(3, VOCABULARY, (count, TOKENS), generator=generator)
        self.texts[:, -1] = 1  # the end, where CLIP reads the text
        self.siglip2 = siglip2

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        sample = {"input_ids": self.texts[i], "attention_mask": torch.ones(TOKENS, dtype=torch.long)}
        if not self.siglip2:
            return {**sample, "pixel_values": self.images[i]}
        count = (SIDE // PATCH) ** 2
        patches = self.images[i].reshape(3 * PATCH * PATCH, count).T
        return {
            **sample,
            "pixel_values": patches,
            "pixel_attention_mask": torch.ones(count, dtype=torch.long),
            "spatial_shapes": torch.tensor([SIDE // PATCH, SIDE // PATCH]),
        }


def collate(samples: list[dict[str, Tensor]]) -> dict[str, Any]:
    """A batch of which the model's own loss is wanted."""
    return {**{name: torch.stack([s[name] for s in samples]) for name in samples[0]}, "return_loss": True}


def trainer(kind: type, model: nn.Module | None, callbacks: Any = (), data: Any = None, **options: Any) -> Any:
    """A trainer of plain steps on a CPU, in the order of the data."""
    transformers = library("transformers")
    given = {
        "output_dir": tempfile.gettempdir(),
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "learning_rate": 0.05,
        "max_steps": 10,
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "train_sampling_strategy": "sequential",
        "dataloader_pin_memory": False,
    }
    extra = {
        name: options.pop(name) for name in ("compute_loss_func", "model_init", "compute_metrics") if name in options
    }
    found = kind(
        model,
        transformers.TrainingArguments(**{**given, **options}),
        data_collator=collate,
        train_dataset=data or Pairs(40),
        eval_dataset=Pairs(10),
        callbacks=list(callbacks),
        **extra,
    )
    found.remove_callback(transformers.trainer_callback.PrinterCallback)
    return found
