"""What the device reaches at most: copying, and multiplying bf16 matrices, on random data."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bench.gpu.timing import time_program


def ceilings(add: Callable[..., None], *, tiny: bool) -> None:
    """Bytes read and written a second by an elementwise operation, flops a second of a square product."""
    x = jax.random.bits(jax.random.key(0), (2**16 if tiny else 2**30,), jnp.uint16)
    copy = jax.jit(lambda x: x ^ 1)
    timing = time_program(lambda: copy(x))
    add(copy_bytes_per_second=2 * x.nbytes / timing.seconds, copy_spread=timing.spread)
    del x
    n = 256 if tiny else 8192
    a, b = (jax.random.normal(jax.random.key(i), (n, n), jnp.bfloat16) for i in range(2))
    multiply = jax.jit(jnp.dot)
    timing = time_program(lambda: multiply(a, b))
    add(matmul_flops_per_second=2 * n**3 / timing.seconds, matmul_spread=timing.spread)
