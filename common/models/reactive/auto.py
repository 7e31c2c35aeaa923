"""The Auto classes of transformers that know engram's models too.

Not registered beside the models: importing `AutoModel` takes 1.5 s of CPU time, and every process
of a run imports a model.
"""

from __future__ import annotations

from transformers import AutoConfig as AutoConfig
from transformers import AutoModel as AutoModel

from common.models.reactive.config import RxTConfig
from common.models.reactive.model import ReactiveTransformer
from common.models.reactive.reward import RxTRewardConfig, RxTRewardModel

AutoConfig.register("rxt", RxTConfig, exist_ok=True)
AutoModel.register(RxTConfig, ReactiveTransformer, exist_ok=True)
AutoConfig.register("rxt_reward", RxTRewardConfig, exist_ok=True)
AutoModel.register(RxTRewardConfig, RxTRewardModel, exist_ok=True)
