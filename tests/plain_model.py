"""The Reactive Transformer computed plainly: numpy, float64, one sequence, head by head.

Written from the articles (arXiv 2510.03561, 2510.01817) and the configuration's words, to test the
real one against. It shares the weights and nothing else.
"""

from __future__ import annotations

import numpy as np
from torch import nn

from common.models.reactive.config import RxTConfig

Array = np.ndarray


class PlainModel:
    """Memory [layers, slots, width] and encoded interactions [layers, tokens, width] are of one
    conversation."""

    def __init__(self, model: nn.Module, config: RxTConfig):
        self.config = config
        self.weights = {
            name: parameter.detach().double().numpy()
            for name, parameter in model.named_parameters()
        }

    # --- the three functions ----------------------------------------------------------------------

    def encode(self, tokens: list[int]) -> Array:
        config, x, states = self.config, self.embed(tokens), []
        heads = (config.query_heads, config.kv_heads)
        for i in range(config.layers):
            at = f"encoder.layers.{i}"
            normed = self.rms_norm(f"{at}.attention_norm", x)
            order = np.arange(len(tokens))
            x = x + self.attention(f"{at}.attention", normed, normed, heads, order, order)
            x = x + self.feed_forward(
                f"{at}.feed_forward", self.rms_norm(f"{at}.feed_forward_norm", x)
            )
            states.append(x)
        return np.stack(states)

    def remember(self, memory: Array, encoded: Array) -> Array:
        config, written = self.config, []
        heads = (config.memory_query_heads or 0, config.memory_kv_heads or 0)
        kind = config.memory_attention
        if kind == "last_interaction":
            return np.stack([self.pooled(layer) for layer in encoded])
        for i in range(config.layers):
            at, slots = f"memory_attention.layers.{i}", memory[i]
            if kind != "simple":
                seen = normed = self.rms_norm(f"{at}.slot_norm", slots)
                if kind != "self":
                    seen = self.rms_norm("memory_attention.mean_norm", memory.mean(0))
                if kind == "gated_self_interlayer":
                    seen = self.gate(f"{at}.mixture_gate", normed, seen)
                new = self.attention(f"{at}.slot_attention", normed, seen, heads)
                slots = self.gate(f"{at}.slot_gate", slots, new)
            new = self.attention(
                f"{at}.attention",
                self.rms_norm(f"{at}.memory_norm", slots),
                self.rms_norm(f"{at}.encoded_norm", encoded[i]),
                heads,
                key_positions=np.arange(encoded.shape[1]),
            )
            written.append(self.gate(f"{at}.gate", slots, new))
        return np.stack(written)

    def decode(self, tokens: list[int], memory: Array) -> Array:
        """Logits [tokens, vocabulary]."""
        config, x = self.config, self.embed(tokens)
        order, own = np.arange(len(tokens)), (config.query_heads, config.kv_heads)
        cross = (config.cross_query_heads or 0, config.cross_kv_heads or 0)
        for i in range(config.layers):
            at = f"decoder.layers.{i}"
            normed = self.rms_norm(f"{at}.attention_norm", x)
            x = x + self.attention(f"{at}.attention", normed, normed, own, order, order, True)
            x = x + self.attention(
                f"{at}.cross_attention",
                self.rms_norm(f"{at}.cross_norm", x),
                self.rms_norm(f"{at}.memory_norm", memory[i]),
                cross,
                query_positions=order,
            )
            if config.memory_reads == 2:
                x = x + self.attention(
                    f"{at}.second_attention",
                    self.rms_norm(f"{at}.second_norm", x),
                    self.rms_norm(f"{at}.memory_norm", memory[i]),
                    cross,
                    query_positions=order,
                    asked=f"{at}.cross_attention",
                )
            normed = self.rms_norm(f"{at}.feed_forward_norm", x)
            x = x + (self.experts if config.experts else self.feed_forward)(
                f"{at}.feed_forward", normed
            )
        return self.linear("decoder.head", self.rms_norm("decoder.head_norm", x))

    def value(self, tokens: list[int], memory: Array | None = None) -> float:
        """Of a critic: from the mean over tokens of what its encoder's last layer says, and of what
        the tokens of each layer find in that layer of memory."""
        config, states = self.config, self.encode(tokens)
        seen = states[-1]
        heads = (config.cross_query_heads or 0, config.cross_kv_heads or 0)
        for i, slots in enumerate([] if memory is None else memory):
            seen = seen + self.attention(
                f"looks.{i}.cross_attention",
                self.rms_norm(f"looks.{i}.cross_norm", states[i]),
                self.rms_norm(f"looks.{i}.memory_norm", slots),
                heads,
                query_positions=np.arange(len(tokens)),
            )
        value, gate = np.split(self.linear("hidden", seen.mean(0)), 2)
        x = value * gate * sigmoid(gate)
        x = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
        x = x * self.weights["norm.weight"] + self.weights["norm.bias"]
        return float(self.linear("value", x)[0])

    def pooled(self, tokens: Array) -> Array:
        """Slot s holds the mean of the tokens that its share of them touches."""
        count, slots = len(tokens), self.config.slots
        touched = [
            [t for t in range(count) if t * slots < (s + 1) * count and (t + 1) * slots > s * count]
            for s in range(slots)
        ]
        return np.stack([tokens[each].mean(0) for each in touched])

    # --- parts ------------------------------------------------------------------------------------

    def embed(self, tokens: list[int]) -> Array:
        return np.stack([self.weights["embedding.weight"][token] for token in tokens])

    def linear(self, at: str, x: Array) -> Array:
        return x @ self.weights[f"{at}.weight"].T + self.weights[f"{at}.bias"]

    def rms_norm(self, at: str, x: Array) -> Array:
        mean_square = np.square(x).mean(-1, keepdims=True)
        return x / np.sqrt(mean_square + self.config.norm_eps) * self.weights[f"{at}.weight"]

    def feed_forward(self, at: str, x: Array) -> Array:
        value, gate = np.split(self.linear(f"{at}.up", x), 2, axis=-1)
        return self.linear(f"{at}.down", value * gate * sigmoid(gate))

    def experts(self, at: str, x: Array) -> Array:
        """Each token through its most probable experts, weighted by renormalised probabilities; one
        alone by its probability as it is."""
        rows, count = [], self.config.experts_per_token
        for token in x:
            probabilities = softmax(self.weights[f"{at}.router.weight"] @ token)
            chosen = np.argsort(-probabilities)[:count]
            shares = probabilities[chosen]
            row = np.zeros_like(token)
            if count > 1:
                shares = shares / shares.sum()
            for expert, share in zip(chosen, shares, strict=True):
                up, up_bias, down, down_bias = (
                    self.weights[f"{at}.{name}"][expert]
                    for name in ("up", "up_bias", "down", "down_bias")
                )
                value, gate = np.split(up @ token + up_bias, 2)
                row += share * (down @ (value * gate * sigmoid(gate)) + down_bias)
            rows.append(row)
        return np.stack(rows)

    def projections(self, at: str, query_heads: int, kv_heads: int) -> tuple[Array, Array, Array]:
        """Weights of queries, keys and values, [heads, head_dim, width]."""
        size = self.config.head_dim
        if f"{at}.input.weight" in self.weights:  # of one input
            weight = self.weights[f"{at}.input.weight"]
        else:
            parts = (self.weights[f"{at}.{name}.weight"] for name in ("query", "key_value"))
            weight = np.concatenate(list(parts))
        weight = weight.reshape(-1, size, self.config.width)
        query, key, value = np.split(weight, [query_heads, query_heads + kv_heads])
        return query, key, value

    def attention(
        self,
        at: str,
        x: Array,
        y: Array,
        heads: tuple[int, int],
        query_positions: Array | None = None,
        key_positions: Array | None = None,
        causal: bool = False,
        asked: str | None = None,
    ) -> Array:
        """Rows of x ask, rows of y answer; those with positions are rotated by them. asked: whose
        keys and values these are, where `at` has none."""
        query, key, value = self.projections(asked or at, *heads)
        if asked is not None:
            query = self.weights[f"{at}.query.weight"].reshape(query.shape)
        seen = []
        for head in range(heads[0]):
            shared = head // (heads[0] // heads[1])
            q, k, v = x @ query[head].T, y @ key[shared].T, y @ value[shared].T
            if query_positions is not None:
                q = self.rotate(q, query_positions)
            if key_positions is not None:
                k = self.rotate(k, key_positions)
            rows = []
            for i, one in enumerate(q):
                visible = i + 1 if causal else len(y)
                weights = softmax(k[:visible] @ one / np.sqrt(self.config.head_dim))
                rows.append(weights @ v[:visible])
            seen.append(np.stack(rows))
        return self.linear(f"{at}.output", np.concatenate(seen, axis=-1))

    def rotate(self, x: Array, positions: Array) -> Array:
        """Pairs (2i, 2i + 1) turned by position · base^(-2i / head_dim)."""
        turned = np.empty_like(x)
        for i in range(0, x.shape[-1], 2):
            angle = positions * self.config.rope_base ** (-i / x.shape[-1])
            turned[:, i] = x[:, i] * np.cos(angle) - x[:, i + 1] * np.sin(angle)
            turned[:, i + 1] = x[:, i] * np.sin(angle) + x[:, i + 1] * np.cos(angle)
        return turned

    def gate(self, at: str, old: Array, new: Array) -> Array:
        kind = self.config.residual_gate
        if kind == "none":
            return old + new
        if kind == "delta":
            return np.stack([self.delta(at, *each) for each in zip(old, new, strict=True)])
        status = (old + new).mean(-1)
        if kind == "per_number":
            pre = self.linear(f"{at}.linear", np.concatenate([old, new], -1))
        elif kind == "static":
            pre = self.weights[f"{at}.weight"]
        elif kind == "linear":
            pre = self.linear(f"{at}.linear", status)
        else:
            pre = self.weights[f"{at}.weight"] * (
                status if self.config.gate_per_slot else status.mean()
            )
        if kind != "per_number":
            pre = pre[:, None]
        if self.config.gate_activation == "tanh":
            share = np.tanh(pre)
            return (1 + share) * new + (1 - share) * old
        reach = self.config.gate_stretch
        share = np.clip((1 + 2 * reach) * sigmoid(pre) - reach, 0, 1)
        return share * new + (1 - share) * old

    def delta(self, at: str, old: Array, new: Array) -> Array:
        """One slot, a matrix whose rows are told by a key: what the key reads becomes the value."""
        heads, size = self.config.heads, self.config.head_dim
        key, value, strength = np.split(self.linear(f"{at}.linear", new), [heads, heads + size])
        key = key / np.sqrt((key**2).sum())
        value = value / np.sqrt((value**2).mean() + self.config.norm_eps)
        reach = self.config.gate_stretch
        share = np.clip((1 + 2 * reach) * sigmoid(strength[0]) - reach, 0, 1)
        rows = old.reshape(heads, size)
        rows = rows - share * np.outer(key, key @ rows) + share * np.outer(key, value)
        size_after = np.sqrt((rows**2).mean())
        return rows.reshape(-1) / max(1.0, size_after)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def softmax(x: Array) -> Array:
    weights = np.exp(x - x.max())
    return weights / weights.sum()
