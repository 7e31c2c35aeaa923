"""engram's models as classes of `transformers`: what `AutoModel.from_pretrained` gives.

Import this only where `transformers` is asked for: it takes seconds, and every process of a run
opens a model. `module.py` reads and writes the same files without it.
"""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import AutoConfig as AutoConfig
from transformers import AutoModel as AutoModel
from transformers import PretrainedConfig, PreTrainedModel

from common.models.reactive.config import RxTConfig
from common.models.reactive.model import ReactiveTransformer
from common.models.reactive.reward import RxTRewardConfig, RxTRewardModel


class _HubConfig(PretrainedConfig):
    attribute_map = {  # noqa: RUF012
        "hidden_size": "width",
        "num_hidden_layers": "layers",
        "num_attention_heads": "heads",
    }
    shape_class: ClassVar[type[RxTConfig]]

    def __init__(self, **values: Any):
        self.shape: Any = self.shape_class.from_dict(values)
        super().__init__(**values | self.shape.to_dict())

    def to_dict(self) -> dict[str, Any]:
        return {key: value for key, value in super().to_dict().items() if key != "shape"}


class RxTHubConfig(_HubConfig):
    model_type = "rxt"
    shape_class = RxTConfig

    def __init__(self, **values: Any):
        super().__init__(**values)


class RxTRewardHubConfig(_HubConfig):
    model_type = "rxt_reward"
    shape_class = RxTRewardConfig

    def __init__(self, **values: Any):
        super().__init__(**values)


class RxTHubModel(ReactiveTransformer, PreTrainedModel):  # type: ignore[misc]
    config_class = RxTHubConfig  # type: ignore[assignment, misc]

    def __init__(self, config: RxTHubConfig):
        PreTrainedModel.__init__(self, config)
        self.build(config.shape)
        self.post_init()


class RxTRewardHubModel(RxTRewardModel, PreTrainedModel):  # type: ignore[misc]
    config_class = RxTRewardHubConfig  # type: ignore[assignment, misc]

    def __init__(self, config: RxTRewardHubConfig):
        PreTrainedModel.__init__(self, config)
        self.build(config.shape)
        self.post_init()


AutoConfig.register("rxt", RxTHubConfig, exist_ok=True)
AutoModel.register(RxTHubConfig, RxTHubModel, exist_ok=True)
AutoConfig.register("rxt_reward", RxTRewardHubConfig, exist_ok=True)
AutoModel.register(RxTRewardHubConfig, RxTRewardHubModel, exist_ok=True)
