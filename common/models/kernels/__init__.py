"""Inner loops of inference on CPUs, compiled from Python by Numba: what PyTorch takes half a dozen
passes or calls for, in one.

A decoding step of a small model is a few hundred calls on little data, each of which costs more to
make than to compute: so a decoder layer is two calls here (`attend`, `feed_forward`). All arrays
are float32, but for places and tokens.

Invariants: a row's result depends on that row alone, or on what its sequence and its memory hold,
bit for bit, as every row is computed by the same instructions in the same order; what is not a
number stays not a number. All arrays are contiguous. Nothing here knows of modules or slots.
"""
