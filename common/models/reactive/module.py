"""Base of the models of this folder: shape, first weights, and files that `transformers` opens.

`transformers` itself is not needed for any of it: importing its models takes two seconds and more,
and every actor of a run opens a model. Its own classes for the same files are in `auto.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from common.failures import InputError
from common.models.reactive.config import RxTConfig

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class RxTModule(nn.Module):
    config_class: ClassVar[type[RxTConfig]]
    embedding: nn.Embedding

    def __init__(self, config: Any):
        super().__init__()
        self.config = config
        self.build(config)
        self.apply(self._init_weights)

    def build(self, config: Any) -> None:
        """Make the submodules. Order matters: first weights are drawn in it."""
        raise NotImplementedError

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.weight.dtype


Model = TypeVar("Model", bound=RxTModule)


def write_model(
    model: RxTModule, folder: str | Path, state: dict[str, Tensor] | None = None
) -> None:
    """config.json and model.safetensors. state: in place of the model's own weights."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    kind = {"model_type": model.config_class.model_type, "architectures": [type(model).__name__]}
    text = json.dumps(kind | model.config.to_dict(), indent=2, sort_keys=True)
    (path / CONFIG).write_text(text + "\n", encoding="utf-8")
    tensors = {
        name: value.detach().cpu().contiguous()
        for name, value in (model.state_dict() if state is None else state).items()
    }
    save_file(tensors, path / WEIGHTS, metadata={"format": "pt"})


def read_model_type(where: str, folder: str | Path) -> str | None:
    """Raises InputError naming `where` if the folder holds no model."""
    if not all((Path(folder) / name).is_file() for name in (CONFIG, WEIGHTS)):
        raise InputError(where, f"is not a model checkpoint: it has no {CONFIG} and {WEIGHTS}")
    kind: str | None = json.loads((Path(folder) / CONFIG).read_bytes()).get("model_type")
    return kind


def read_config(kind: type[RxTModule], folder: str | Path) -> Any:
    return kind.config_class.from_dict(json.loads((Path(folder) / CONFIG).read_bytes()))


def read_model(kind: type[Model], where: str, folder: str | Path) -> Model:
    """Read a model that `write_model` wrote. Raises InputError naming `where` if its weights do not
    fit."""
    # No other draw moves by those of the first weights. On the device "meta" none are drawn, but
    # PyTorch then imports its compiler, which takes seconds.
    with torch.random.fork_rng(devices=[]):
        model = kind(read_config(kind, folder))
    try:
        model.load_state_dict(load_file(Path(folder) / WEIGHTS))
    except RuntimeError as misfit:
        first = str(misfit).split("\n")[1:2]
        raise InputError(
            where, f"holds the weights of another version of engram: {' '.join(first).strip()}"
        ) from misfit
    return model.eval()
