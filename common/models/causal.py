"""Causal language models as `transformers` opens them, and what they must have before anything
trains.

A checkpoint of a causal policy is a model folder of `transformers` with one file more, the format
of its dialogues (`common/data/dialogue.py`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.config.causal import CausalModel, TextMemorySettings
from common.config.locations import split_pin
from common.data.causal_tokenizer import DIALOGUE, SPECIAL_ROLES, CausalTokenizer, text_of
from common.data.dialogue import DialogueFormat
from common.data.text_memory import TextMemoryFormat
from common.failures import InputError
from common.models.hub import naming, pretrained, require_nameable, require_weights
from common.storage.checkpoint import MANIFEST, open_checkpoint

_QUERY, _EARLIER, _REPLY = "engramquery", "engramearlier", "engramreply"
"""Words that are put into a chat template to see what it puts around them."""
_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
"""Names that configurations have for the longest sequence."""


def is_causal(folder: Path) -> bool:
    """Whether a checkpoint's folder holds a causal policy."""
    return (folder / DIALOGUE).is_file()


@contextmanager
def model_folder(where: str) -> Iterator[tuple[str, str]]:
    """(folder or hub name, revision) of what a setting names: a run or a checkpoint of engram, a
    folder, or a name on a hub, perhaps pinned. Raises InputError where a run has no checkpoint."""
    name, commit = split_pin(where)
    folder = Path(name)
    ours = (folder / MANIFEST).is_file() or (folder / "checkpoints").is_dir()
    if "://" in name or ours or "/checkpoints/" in name:
        with open_checkpoint(name).folder() as local:
            yield str(local), "main"
    else:
        require_nameable(where, name)
        yield name, commit or "main"


def open_causal(settings: CausalModel) -> tuple[nn.Module, CausalTokenizer]:
    """The model, in float32 and without dropout in use, and its tokenizer.

    Raises InputError naming the model where transformers opens nothing there, where weights do not
    fit, or where it lacks what training needs: an end token, a known length, hidden states, a chat
    template that works.
    """
    from transformers import AutoModelForCausalLM

    tokenizer = open_tokenizer(settings)
    with model_folder(settings.path) as (name, revision):
        # In float32 whatever it is kept in: small steps on bfloat16 weights round to nothing.
        model = pretrained(AutoModelForCausalLM, settings.path, name, revision, dtype=torch.float32)
    require_trainable(settings.path, model, tokenizer)
    return model.eval(), tokenizer


def open_tokenizer(settings: CausalModel) -> CausalTokenizer:
    """The tokenizer of a model, with the format of dialogues that the settings ask for. Raises
    InputError as `open_causal`."""
    from transformers import AutoConfig, AutoTokenizer

    where = settings.path
    with model_folder(where) as (name, revision), naming(where):
        config = AutoConfig.from_pretrained(name, revision=revision)
        given = AutoTokenizer.from_pretrained(name, revision=revision)
    return dialogue_tokenizer(where, given, config, settings)


def dialogue_tokenizer(
    where: str, given: Any, config: Any, settings: CausalModel
) -> CausalTokenizer:
    """The same of a tokenizer of `transformers` and the configuration of its model. where: what
    errors name."""
    if not given.is_fast:
        raise InputError(where, "its tokenizer has no fast version, which policies need")
    if given.eos_token is None:
        raise InputError(
            where, "its tokenizer has no end token (eos_token): no answer would ever end"
        )
    longest = sequence_limit(where, config, settings.max_tokens)
    require_room(settings, longest)
    names = {role: text_of(getattr(given, role, None)) for role in SPECIAL_ROLES}
    chat = settings.template == "chat" or (settings.template == "auto" and given.chat_template)
    texts = chat_texts(where, given) if chat else plain_texts(given, settings)
    if chat:
        names["chat_template"] = given.chat_template
    budget = min(settings.memory_tokens or longest // 2, longest)
    text = None
    if settings.text_memory is not None:
        # In a chat, memory is part of the user's message, so what begins that stands before it.
        message = ("", "")
        if chat:
            message, texts = (texts["before"], texts["after"]), texts | {"before": ""}
        text = text_memory_format(settings.text_memory, message)
    dialogue = DialogueFormat(
        **texts,
        interactions=settings.interactions,
        memory_tokens=budget,
        max_tokens=longest,
        text_memory=text,
        think=None if settings.think is None else (settings.think.open, settings.think.close),
    )
    # A copy: what it is set to here must not change the one that was given.
    return CausalTokenizer(copy.deepcopy(given.backend_tokenizer), names, dialogue)


def text_memory_format(settings: TextMemorySettings, message: tuple[str, str]) -> TextMemoryFormat:
    """How a text memory is written and read. message: texts around a message of the user."""
    before, after = settings.read_pieces
    opening, between, asked, last = settings.write_pieces
    write = (message[0] + opening, between, asked, last + message[1])
    return TextMemoryFormat(settings.tokens, (message[0] + before, after), write)


def require_room(settings: CausalModel, longest: int) -> None:
    """Raises InputError where a text memory takes so much of the longest sequence that none could
    be rewritten."""
    text = settings.text_memory
    if text is not None and 2 * text.tokens >= longest:
        raise InputError(
            "model.causal.text_memory.tokens",
            f"is {text.tokens}: to rewrite a memory, the old and the new one must fit into a "
            f"sequence of {longest} tokens, with an interaction between them",
        )


def token_counter(where: str) -> Callable[[str], int]:
    """Counts the tokens of a text, by the tokenizer of a model. Raises InputError as
    `open_causal`."""
    from transformers import AutoTokenizer

    with model_folder(where) as (name, revision), naming(where):
        given = AutoTokenizer.from_pretrained(name, revision=revision)
    return lambda text: len(
        given(text.strip(), add_special_tokens=False, verbose=False)["input_ids"]
    )


def sequence_limit(where: str, config: Any, wanted: int | None) -> int:
    """Tokens of the longest sequence. Raises InputError where more is asked for than the model was
    made for, or nothing says how many."""
    known: Any = next(
        (getattr(config, key) for key in _LENGTHS if getattr(config, key, None)), None
    )
    if known is None and wanted is None:
        raise InputError(
            where, "does not say how long a sequence may be; set model.causal.max_tokens"
        )
    if known is not None and wanted is not None and wanted > known:
        raise InputError(
            "model.causal.max_tokens", f"is {wanted}, and {where} was made for {known} tokens"
        )
    return int(wanted or known)


def plain_texts(tokenizer: Any, settings: CausalModel) -> dict[str, str]:
    """The texts of `DialogueFormat` without a chat template."""
    before, after = settings.prompt.split("{query}")
    # What the tokenizer itself puts at the beginning of a text, without what it puts at the end.
    around = [tokenizer.convert_ids_to_tokens(i) for i in tokenizer("")["input_ids"]]
    start = "".join(token for token in around if token != tokenizer.eos_token)
    piece = tokenizer.convert_ids_to_tokens(tokenizer("a", add_special_tokens=False)["input_ids"])[
        0
    ]
    spaced = piece.startswith(("Ġ", "▁")) or after.endswith((" ", "\n"))
    return {
        "start": start,
        "before": before,
        "after": after,
        "separator": settings.separator,
        "answer_space": "" if spaced else " ",
        "end": str(tokenizer.eos_token),
    }


def chat_texts(where: str, tokenizer: Any) -> dict[str, str]:
    """The same, as the tokenizer's chat template has them: found by putting marked words into it.
    Raises InputError where it cannot be applied, or treats a first and a later query
    differently."""
    if not tokenizer.chat_template:
        raise InputError(
            where, "its tokenizer has no chat template; set model.causal.template: plain"
        )
    asked = {"role": "user", "content": _QUERY}
    earlier = [{"role": "user", "content": _EARLIER}, {"role": "assistant", "content": _REPLY}]

    def rendered(messages: list[dict[str, str]]) -> str:
        try:
            return str(
                tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            )
        except Exception as failure:
            raise InputError(
                where, f"its chat template fails: {type(failure).__name__}: {failure}"
            ) from failure

    first, later = rendered([asked]), rendered([*earlier, asked])
    if first.count(_QUERY) != 1 or later.count(_QUERY) != 1 or later.count(_REPLY) != 1:
        raise InputError(where, "its chat template does not show each message once, as it is")
    opening, after = first.split(_QUERY)
    between, after_later = later.split(_REPLY)[1].split(_QUERY)
    if after != after_later:
        raise InputError(where, "its chat template puts other text after a first query than later")
    end = _end_token(tokenizer, between)
    between = between.removeprefix(end)
    shared = _common_ending(opening, between)
    return {
        "start": opening[: len(opening) - len(shared)],
        "before": shared,
        "after": after,
        "separator": between[: len(between) - len(shared)],
        "answer_space": "",
        "end": end,
    }


def _end_token(tokenizer: Any, text: str) -> str:
    """The special token at the beginning of what follows an answer, or the tokenizer's own end."""
    found = [token for token in tokenizer.all_special_tokens if text.startswith(token)]
    added = [
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if text.startswith(token.content)
    ]
    return max([*found, *added], key=len, default=str(tokenizer.eos_token))


def _common_ending(one: str, other: str) -> str:
    length = 0
    while length < min(len(one), len(other)) and one[-1 - length] == other[-1 - length]:
        length += 1
    return one[len(one) - length :]


@torch.no_grad()
def require_trainable(where: str, model: Any, tokenizer: CausalTokenizer) -> None:
    """Raises InputError where the tokenizer has ids that the model does not, or where the model
    gives no hidden states."""
    rows = model.get_input_embeddings().weight.shape[0]
    if tokenizer.vocab_size > rows:
        raise InputError(
            where, f"its tokenizer has {tokenizer.vocab_size} tokens, and the model {rows}"
        )
    given = model(torch.tensor([[tokenizer.eos_id]]), output_hidden_states=True, use_cache=False)
    states = getattr(given, "hidden_states", None)
    if not states or states[-1].dim() != 3:
        raise InputError(
            where, "gives no hidden states, which a value head reads: it cannot be a policy here"
        )


def load_causal(where: str, folder: Path) -> tuple[nn.Module, CausalTokenizer]:
    """The policy in a checkpoint's folder. Raises InputError where weights do not fit."""
    from transformers import AutoModelForCausalLM

    model = pretrained(AutoModelForCausalLM, where, str(folder), "main", dtype=torch.float32)
    return model.eval(), CausalTokenizer.load(folder)


def require_causal_weights(where: str) -> None:
    """Refuse weights of a model in a folder that do not fit it, as `open_causal` does, without
    reading what they hold."""
    from transformers import AutoModelForCausalLM

    with model_folder(where) as (name, _):
        require_weights(AutoModelForCausalLM, where, name)


def model_from(config: dict[str, Any]) -> nn.Module:
    """A model of a configuration, without weights of meaning."""
    from transformers import AutoConfig, AutoModelForCausalLM

    held = dict(config)
    made = AutoConfig.for_model(held.pop("model_type"), **held)
    return AutoModelForCausalLM.from_config(made, dtype=torch.float32).eval()


def config_of(where: str) -> Any:
    """Configuration of the model that a setting names. Raises InputError as `open_causal`."""
    from transformers import AutoConfig

    with model_folder(where) as (name, revision), naming(where):
        return AutoConfig.from_pretrained(name, revision=revision)
