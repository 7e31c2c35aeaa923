"""Backend `cpu_kernels`: the model as loops compiled from Python by Numba, for float32 on CPUs.

A decoding step of a small model is a few hundred calls on little data, each of which costs more to
make than to compute. Here a decoder layer is two calls (`attend`, `feed_forward`). Nothing outside
this folder imports it but `rollout/policies/reactive/backend.py`, which goes on without it where
the folder or Numba is missing.

Invariants of kernels: all arrays are contiguous, and float32 but for rows, positions and tokens. A
row's result depends on that row alone, or on what its sequence and its memory hold, bit for bit, as
every row is computed by the same instructions in the same order; what is not a number stays not a
number. Kernels know nothing of modules or slots.
"""
