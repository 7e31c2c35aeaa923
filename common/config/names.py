"""Names that the command line offers before it reads a configuration. This module imports nothing
heavy: `--help`, completion and typing errors are answered at once."""

from __future__ import annotations

from typing import Literal

BackendName = Literal["auto", "torch", "cuda_graphs", "cpu_kernels", "transformers", "vllm"]
"""The backend that computes answers; `auto` takes the fastest that fits."""
CAUSAL_BACKENDS = ("transformers", "vllm")
"""Those that compute a causal language model, and nothing else."""

MOST_FOLLOW_UPS = 4096
"""Follow-ups of a conversation beyond which a file of rows is taken to be broken, where nothing
says otherwise: twice as many as the longest tests have."""
