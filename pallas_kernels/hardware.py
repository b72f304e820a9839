"""What the device at hand can run, in the words that every operation's choice uses."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax

__all__ = ["Choice", "default_device", "hopper_refusal"]


class Choice(NamedTuple):
    """What runs, and why."""

    implementation: Literal["xla", "hopper", "native"]
    reason: str


def default_device() -> jax.Device:
    """The device that a computation with no placement of its own runs on."""
    chosen = jax.config.jax_default_device
    return jax.devices(chosen)[0] if chosen is None or isinstance(chosen, str) else chosen


def hopper_refusal(device: Any) -> str | None:
    """Why the Mosaic kernels for SM90 do not run on a device, or None if they do."""
    if device.platform != "gpu":
        return f"the device is a {device.platform}, and the kernels are for NVIDIA GPUs"
    capability = getattr(device, "compute_capability", "unknown")
    if str(capability) != "9.0":
        return f"the GPU has compute capability {capability}, and the kernels are for 9.0 (Hopper)"
    return None
