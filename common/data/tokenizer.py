"""The tokenizer of conversations: byte-level BPE with eight special tokens whose ids never change.

Template: `[BOS][Q]query[A]answer[EOS]`, with `[T]think` before `[A]` where the model thinks first.
The template is put together from ids, never from text, so nothing a user writes can become a
special token: "[EOS]" in a query is five bytes. Every text is read as if a space stood before it:
"Rex" after [A] and " Rex" inside a sentence are the same token.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from common.data.special_tokens import ANSWER as ANSWER
from common.data.special_tokens import BOS as BOS
from common.data.special_tokens import EOS as EOS
from common.data.special_tokens import MASK as MASK
from common.data.special_tokens import PAD as PAD
from common.data.special_tokens import QUERY as QUERY
from common.data.special_tokens import SPECIAL_TOKENS as SPECIAL_TOKENS
from common.data.special_tokens import THINK as THINK
from common.data.special_tokens import UNK as UNK
from common.episode import Interaction
from common.failures import InputError

SMALLEST_VOCABULARY = len(SPECIAL_TOKENS) + 256


def _byte_alphabet() -> dict[str, int]:
    """Byte of each character that byte-level BPE writes it as (Radford 2019): printable bytes stand
    for themselves, the others follow from character 256 on."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + i): byte for i, byte in enumerate(others)
    }


_BYTES = _byte_alphabet()
_HEX_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def token_piece_bytes(piece: str) -> bytes:
    """Bytes of a token by its name in the vocabulary: of byte-level BPE, or of SentencePiece, where
    ▁ is a space and <0x0A> a byte."""
    if all(character in _BYTES for character in piece):
        return bytes(_BYTES[character] for character in piece)
    byte = _HEX_BYTE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace("▁", " ").encode()


class ConversationTokenizer:
    """Text to ids and back. Compares and pickles by its JSON, so it travels to actors whole."""

    pad_id, unk_id, bos_id, eos_id, mask_id, query_id, answer_id, think_id = range(
        len(SPECIAL_TOKENS)
    )

    def __init__(self, tokenizer: Tokenizer):
        found = [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS]
        if found != list(range(len(SPECIAL_TOKENS))):
            raise InputError(
                "tokenizer",
                f"special tokens {', '.join(SPECIAL_TOKENS)} must have the ids 0 to 7, found "
                f"{found}",
            )
        # Without this, the library looks for special tokens in user text.
        tokenizer.encode_special_tokens = True
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.vocab_size: int = tokenizer.get_vocab_size()
        """Tokens there really are; at most what training was asked for."""
        self._bytes: dict[int, bytes] = {}

    # --- text to ids ---

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone, without any special token."""
        return self._tokenizer.encode(text.strip(), add_special_tokens=False).ids

    def text(self, text: str) -> list[int]:
        """[BOS] text [EOS], for language modelling."""
        return [BOS, *self.encode(text), EOS]

    def prompt(self, query: str, think: bool = False) -> list[int]:
        """[BOS][Q] query [A]; with `think`, [T] in place of [A]: the model thinks and writes [A]
        itself."""
        return [BOS, QUERY, *self.encode(query), THINK if think else ANSWER]

    def answer(self, text: str, think: str | None = None) -> list[int]:
        """answer [EOS], what follows a prompt; with `think`, think [A] answer [EOS]."""
        thought = [] if think is None else [*self.encode(think), ANSWER]
        return [*thought, *self.encode(text), EOS]

    def interaction(
        self, query: Interaction | str, answer: str = "", think: str | None = None
    ) -> list[int]:
        """A whole interaction, prompt and answer, as the memory is written with it. An
        `Interaction` brings its own answer and thought."""
        if isinstance(query, Interaction):
            return self.interaction(query.query, query.answer, query.think)
        return self.prompt(query, think is not None) + self.answer(answer, think)

    # --- ids to text ---

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids, special tokens dropped, without white space around it. A thought is part
        of it: cut ids at `answer_id` first."""
        return self._tokenizer.decode(
            [i for i in ids if i >= len(SPECIAL_TOKENS)], skip_special_tokens=True
        ).strip()

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for, which may be part of a character; b"" for special
        tokens."""
        if token not in self._bytes:
            piece = "" if token < len(SPECIAL_TOKENS) else self._tokenizer.id_to_token(token) or ""
            known = all(character in _BYTES for character in piece)
            self._bytes[token] = (
                bytes(_BYTES[c] for c in piece)
                if known
                else self._tokenizer.decode([token]).encode()
            )
        return self._bytes[token]

    # --- to files and actors ---

    def to_json(self) -> str:
        return self._tokenizer.to_str()

    @classmethod
    def from_json(cls, text: str) -> ConversationTokenizer:
        return cls(Tokenizer.from_str(text))

    def save(self, folder: str | Path) -> None:
        """Tokenizer files that `transformers.AutoTokenizer.from_pretrained(folder)` opens."""
        # Here, because every actor has a tokenizer and few save one.
        from transformers import PreTrainedTokenizerFast

        PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(self.to_json()),
            pad_token="[PAD]",
            unk_token="[UNK]",
            bos_token="[BOS]",
            eos_token="[EOS]",
            mask_token="[MASK]",
            extra_special_tokens=["[Q]", "[A]", "[T]"],
            split_special_tokens=True,
            add_prefix_space=True,
            clean_up_tokenization_spaces=False,
        ).save_pretrained(str(folder))

    @classmethod
    def load(cls, folder: str | Path) -> ConversationTokenizer:
        """From what `save` wrote, or any fast tokenizer of `transformers` with our special tokens
        at our ids."""
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise InputError(str(folder), "there is no tokenizer.json in this folder")
        return cls(Tokenizer.from_file(str(path)))

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return ConversationTokenizer.from_json, (self.to_json(),)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ConversationTokenizer) and self.to_json() == other.to_json()

    __hash__ = None  # type: ignore[assignment]


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> ConversationTokenizer:
    """Byte-level BPE of at most `vocab_size` tokens, special tokens and the 256 bytes included; the
    same texts give the same tokenizer."""
    if vocab_size < SMALLEST_VOCABULARY:
        raise InputError(
            "tokenizer.vocab_size",
            f"{vocab_size} is less than the {SMALLEST_VOCABULARY} special tokens and bytes",
        )
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    # Adds nothing; transformers would write it into the saved file anyhow, which then would no
    # longer equal this one.
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A", pair="$A $B:1", special_tokens=[]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer, length=len(texts))
    return ConversationTokenizer(tokenizer)
