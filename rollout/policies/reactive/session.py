"""One conversation with a person: the rollout engine's slots, one of them, token by token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from common.config.names import BackendName
from common.config.rollout import Sampling
from common.data.special_tokens import ANSWER, spoken_ids, thinks
from common.data.tokenizer import ConversationTokenizer
from common.failures import InputError
from common.models.reactive.model import ReactiveTransformer
from common.seeding import derive
from common.telemetry.timing import PhaseTimer
from common.text.counted import counted
from rollout.policies.episode_state import answer_text, asked_thought, thought_text
from rollout.policies.reactive.memory_files import (
    KeptMemory,
    list_memories,
    load_memory,
    save_memory,
)
from rollout.policies.reactive.slots import Slots, answer_room, check_interaction
from rollout.policies.stopping import StopStrings
from rollout.policies.streaming import streamed
from rollout.protocols import Event


class Session:
    """The same model, seed, sampling and queries give the same answers.

    `greedy`: the most probable token each time, whatever `sampling` says.
    """

    def __init__(
        self,
        model: ReactiveTransformer,
        tokenizer: ConversationTokenizer,
        seed: int = 0,
        sampling: Sampling | None = None,
        greedy: bool = False,
        backend: BackendName = "auto",
    ):
        self.model, self.tokenizer, self.seed, self.greedy = model, tokenizer, seed, greedy
        self._backend = backend
        self.sampling = sampling or Sampling(max_new_tokens=model.config.max_tokens)
        self._slots = Slots(model, 1, self.sampling, model.device, PhaseTimer(), backend)
        self._stops = StopStrings(self.sampling.stop, tokenizer)
        self.turn = 0
        """Interactions that the memory was written with."""
        self.reset()

    @property
    def memory(self) -> Tensor:
        """A copy of the memory, [layers, slots, width]."""
        return self._slots.memory[0].clone()

    def reset(self) -> None:
        """Back to the memory that the session began with."""
        self.turn = 0
        self._slots.start([0], self.model.initial_memory([self.seed]).detach())

    def respond(self, query: str) -> Iterator[Event]:
        """The answer as it comes, then the two events of the memory update. An iterator left early
        leaves the memory as it was.

        Raises InputError where the query is too long for the model.
        """
        thinks_first = asked_thought(None, self.sampling) is not None
        prompt = self.tokenizer.prompt(query, thinks_first)
        if len(prompt) >= self.model.config.max_tokens:
            raise InputError(
                "query",
                f"{len(prompt)} tokens leave no room for an answer in the model's "
                f"{self.model.config.max_tokens}",
            )
        return self._respond(prompt)

    def _respond(self, prompt: list[int]) -> Iterator[Event]:
        key = derive(self.seed, self.turn)
        self._slots.ask(
            [0],
            [prompt],
            [key],
            [answer_room(self.model.config, self.sampling, prompt)],
            [self.greedy],
        )

        def step(_: list[int]) -> tuple[int, bool]:
            tokens = self._slots.step(1)
            return tokens.ids[0], tokens.ends[0]

        def text_of(answer: list[int]) -> str:
            return answer_text(self.tokenizer, prompt, answer)

        def thought_of(answer: list[int], ends: bool) -> str | None:
            over = thinks(prompt) and (ends or ANSWER in answer)
            return thought_text(self.tokenizer, prompt, answer) if over else None

        answer, text = yield from streamed(step, text_of, self._stops, thought_of)
        yield Event("updating", text)
        self._write(spoken_ids(prompt, answer))
        yield Event("updated")

    def remember(self, query: str, answer: str) -> None:
        """Write an interaction that nobody generated: an opening, or what the model should know
        from the start."""
        ids = self.tokenizer.interaction(query, answer)
        check_interaction(self.model.config, ids)
        self._write(ids)

    def _write(self, interaction: list[int]) -> None:
        self._slots.start([0], self._slots.remember(self._slots.memory, [interaction]))
        self.turn += 1

    def describe(self) -> str:
        """The memory in two lines: its shape and history, and the size of what each layer holds."""
        memory = self.memory
        layers, slots, width = memory.shape
        sizes = ", ".join(f"{size:.3g}" for size in memory.square().mean((1, 2)).sqrt().tolist())
        shape = f"{layers} layers × {slots} slots × width {width}"
        written = counted(self.turn, "interactions")
        return f"{shape}, {written} written\nroot mean square by layer: {sizes}"

    # --- keeping memories -------------------------------------------------------------------------

    def kept(self) -> KeptMemory:
        """A copy of the session's memory as it is now."""
        return KeptMemory(self.memory, self.seed, self.turn)

    def restore(self, kept: KeptMemory) -> None:
        """Go on from what was kept. Raises InputError where it is another model's memory."""
        config = self.model.config
        shape = (config.layers, config.slots, config.width)
        if tuple(kept.memory.shape) != shape:
            raise InputError(
                "memory", f"has the shape {tuple(kept.memory.shape)}; this model's is {shape}"
            )
        self.seed, self.turn = kept.seed, kept.turn
        self._slots.start([0], kept.memory[None].to(self.model.device, self.model.dtype))

    def fork(self) -> Session:
        """Another session that remembers the same and goes its own way from here."""
        other = Session(
            self.model, self.tokenizer, self.seed, self.sampling, self.greedy, self._backend
        )
        other.restore(self.kept())
        return other

    def save(self, path: str | Path) -> None:
        """The memory as one safetensors file; seed and number of interactions are its metadata.
        Raises InputError where the file cannot be written."""
        try:
            save_memory(self.kept(), path)
        except (OSError, SafetensorError) as error:
            raise InputError(str(path), f"cannot be written: {error}") from error

    def saved_in(self, folder: Path) -> dict[str, int]:
        return {found.path.name: found.turn for found in list_memories(folder)}

    def load(self, path: str | Path) -> None:
        """Go on from what `save` wrote. Raises InputError where the file is something else, or
        another model's memory."""
        kept = load_memory(path)
        try:
            self.restore(kept)
        except InputError as misfit:
            raise InputError(str(path), misfit.what) from None
