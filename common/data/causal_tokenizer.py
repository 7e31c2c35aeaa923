"""The tokenizer of a causal language model, with the texts that stand around queries.

It has the methods of `ConversationTokenizer` that episodes are made with, so environments and
records are the same for both. Special tokens that a user writes in a query stay plain text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from common.data.dialogue import DialogueFormat, DialogueMemory, Held, Window
from common.data.text_memory import TextMemory, TextMemoryFormat
from common.data.tokenizer import token_piece_bytes
from common.episode import Interaction
from common.failures import InputError

DIALOGUE = "dialogue.json"
"""File of a checkpoint beside the tokenizer's own: the format of dialogues."""


class CausalTokenizer:
    """Text to ids and back. names: special tokens by role (eos_token, bos_token, …), and the chat
    template, as `transformers` saves them. Travels to actors as JSON."""

    def __init__(self, tokenizer: Any, names: dict[str, Any], dialogue: DialogueFormat):
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer, self._names, self.dialogue = tokenizer, names, dialogue
        self._literal = Tokenizer.from_str(tokenizer.to_str())
        # In this one, the library does not look for special tokens in text.
        self._literal.encode_special_tokens = True
        added = tokenizer.get_added_tokens_decoder()
        self.eos_id = int(tokenizer.token_to_id(dialogue.end))
        named = (tokenizer.token_to_id(str(name)) for name in names.values() if name)
        special = {i for i, token in added.items() if token.special} | {self.eos_id}
        self.special_ids = tuple(sorted(special | {i for i in named if i is not None}))
        """Ids that are no text: an answer is decoded and compared without them."""
        pad = names.get("pad_token")
        self.pad_id = self.eos_id if pad is None else int(tokenizer.token_to_id(pad))
        """Fills rows of a batch; which one does not matter, since masks are made of lengths."""
        self._texts = [token.content for token in added.values() if token.special]
        self.vocab_size: int = tokenizer.get_vocab_size()
        text = dialogue.text_memory
        self.memory: DialogueMemory = self.window() if text is None else self._text_memory(text)
        """The policy's way to remember a conversation."""
        self._bytes: dict[int, bytes] = {}
        think = dialogue.think
        self.thinks = think is not None
        """Whether the policy can think before it answers."""
        self.think_open = self._special(think[0]) if think else []
        """Ids that begin a thought, behind a prompt."""
        self.think_close = self._special(think[1]) if think else []
        """Ids that end a thought."""

    def window(self) -> Window:
        """The memory of a policy that remembers interactions."""
        dialogue = self.dialogue
        return Window(
            start=tuple(self._special(dialogue.start)),
            separator=tuple(self._special(dialogue.separator)),
            end=self.eos_id,
            interactions=dialogue.interactions,
            memory_tokens=dialogue.memory_tokens,
            max_tokens=dialogue.max_tokens,
        )

    def _text_memory(self, text: TextMemoryFormat) -> TextMemory:
        before, after = (tuple(self._special(each)) for each in text.read)
        opening, between, asked, last = (tuple(self._special(each)) for each in text.write)
        return TextMemory(
            start=tuple(self._special(self.dialogue.start)),
            end=self.eos_id,
            tokens=text.tokens,
            read=(before, after),
            write=(opening, between, asked, last),
            max_tokens=self.dialogue.max_tokens,
        )

    # --- text to ids ---

    def _special(self, text: str) -> list[int]:
        """Ids of a text of the format, special tokens recognised."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode(self, text: str) -> list[int]:
        """Ids of a text, in which nothing is a special token."""
        return self._literal.encode(text, add_special_tokens=False).ids

    def text(self, text: str) -> list[int]:
        """The start of a context, the text, and the token that ends it: for language modelling."""
        return [*self.memory.start, *self.encode(text.strip()), self.eos_id]

    def prompt(self, query: str, think: bool = False) -> list[int]:
        """The query with what stands around it. think: passed over, since a thought stands between
        prompt and answer and is part of neither (`around_thought`)."""
        dialogue, query = self.dialogue, query.strip()
        if not any(text in query for text in self._texts):
            return self._special(dialogue.before + query + dialogue.after)
        around = (self._special(text) for text in (dialogue.before, dialogue.after))
        before, after = around
        return [*before, *self.encode(query), *after]

    def answer(self, text: str, think: str | None = None) -> list[int]:
        """The answer and the token that ends it, as they follow a prompt."""
        text = text.strip()
        return [*self.encode(self.dialogue.answer_space + text if text else ""), self.eos_id]

    def interaction(
        self, query: Interaction | str, answer: str = "", think: str | None = None
    ) -> list[int]:
        """Prompt and answer, as they are remembered."""
        if isinstance(query, Interaction):
            return self.interaction(query.query, query.answer)
        return self.prompt(query) + self.answer(answer)

    def write_prompt(self, held: Held, query: str, answer: str) -> list[int]:
        """As `DialogueMemory.write_prompt`, of texts."""
        texts = (self.encode(text.strip()) for text in (query, answer))
        return self.memory.write_prompt(held, *texts)

    def thought(self, text: str) -> list[int]:
        """A thought and its end, as they follow `think_open`."""
        return [*self.encode(text.strip()), *self.think_close]

    def ends_thought(self, ids: Sequence[int]) -> bool:
        """Whether a thought ends with the last of these tokens: the text of its end is complete, in
        whatever tokens, or the end token of an answer came."""
        return ids[-1] == self.eos_id or not self.missing_end(ids)

    def missing_end(self, ids: Sequence[int]) -> list[int]:
        """The ids to put behind a thought that does not end by itself; else empty."""
        close, end = self.think_close, self._end_of_thought.encode()
        if list(ids[-len(close) :]) == close:
            return []
        tail = b"".join(self.token_bytes(token) for token in ids[-len(end) :])
        return [] if end and end in tail else close

    def thought_text(self, ids: Sequence[int]) -> str:
        """A thought as text, without its end."""
        text, end = self.decode(ids), self._end_of_thought
        return text.partition(end)[0].strip() if end else text

    @property
    def _end_of_thought(self) -> str:
        """Text that ends a thought, special tokens and white space left out."""
        return self.decode(self.think_close)

    def written(self, text: str) -> list[int]:
        """A memory and the token that ends it, as they follow a prompt to write it."""
        return [*self.encode(text), self.eos_id]

    # --- ids to text ---

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids without special tokens, without white space around it."""
        kept = [i for i in ids if i not in self.special_ids]
        return self._tokenizer.decode(kept, skip_special_tokens=True).strip()

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for, which may be part of a character; b"" for special
        tokens."""
        if token not in self._bytes:
            piece = "" if token in self.special_ids else self._tokenizer.id_to_token(token) or ""
            self._bytes[token] = token_piece_bytes(piece)
        return self._bytes[token]

    # --- to files and actors ---

    def to_json(self) -> str:
        return json.dumps(
            {
                "tokenizer": self._tokenizer.to_str(),
                "names": self._names,
                "dialogue": self.dialogue.to_json(),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> CausalTokenizer:
        held = json.loads(text)
        dialogue = DialogueFormat.from_json(held["dialogue"])
        return cls(Tokenizer.from_str(held["tokenizer"]), held["names"], dialogue)

    def save(self, folder: str | Path) -> None:
        """Tokenizer files that `transformers.AutoTokenizer.from_pretrained(folder)` opens, and the
        format of dialogues."""
        # Here, because every actor has a tokenizer and few save one.
        from transformers import PreTrainedTokenizerFast

        names = {key: value for key, value in self._names.items() if value is not None}
        PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(self._tokenizer.to_str()),
            clean_up_tokenization_spaces=False,
            model_max_length=self.dialogue.max_tokens,
            **names,
        ).save_pretrained(str(folder))
        (Path(folder) / DIALOGUE).write_text(json.dumps(self.dialogue.to_json()), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> CausalTokenizer:
        """From what `save` wrote. InputError where files are missing."""
        path = Path(folder)
        for name in ("tokenizer.json", DIALOGUE):
            if not (path / name).is_file():
                raise InputError(str(folder), f"there is no {name} in this folder")
        names = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8"))
        kept = {role: text_of(names.get(role)) for role in SPECIAL_ROLES}
        template = path / "chat_template.jinja"
        if template.is_file():
            kept["chat_template"] = template.read_text(encoding="utf-8")
        dialogue = DialogueFormat.from_json(json.loads((path / DIALOGUE).read_text("utf-8")))
        return cls(Tokenizer.from_file(str(path / "tokenizer.json")), kept, dialogue)

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return CausalTokenizer.from_json, (self.to_json(),)


SPECIAL_ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")
"""Special tokens that are kept by name."""


def text_of(token: Any) -> str | None:
    """A special token as text, however `transformers` holds it."""
    if token is None or isinstance(token, str):
        return token
    return str(token["content"] if isinstance(token, dict) else token)
