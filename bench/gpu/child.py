"""A process that measures with JAX: ``python -m bench.gpu.child JOB``, started by the parent."""

import logging
from functools import partial
from typing import Any

from bench.gpu.report import Report, job


def main() -> None:
    report = Report()
    wanted = job()
    tiny: bool = wanted["rehearse"]
    if wanted["kind"] == "ceilings":
        from bench.gpu.ceilings import ceilings

        report.facts(device=device_facts())
        cases: Any = [("ceilings", partial(ceilings, tiny=tiny))]
    elif wanted["kind"] == "kernels":
        from bench.gpu import kernels

        found = kernels.cases(wanted["operation"], tiny=tiny)
        cases = [(case.name, partial(kernels.measure, case, tiny=tiny)) for case in found]
    else:
        from bench.gpu.engine import EngineBench

        logging.basicConfig()
        logging.getLogger("cvllm_jax").setLevel(logging.INFO)  # says which kernels were chosen, and why
        bench = EngineBench(**wanted["engine"], tiny=tiny, report=report)
        cases = bench.cases()
    report.run([case for case in cases if wanted.get("match", "") in case[0]], wanted["skip"], is_usable)


def device_facts() -> dict[str, Any]:
    import jax

    device = jax.devices()[0]
    stats = device.memory_stats() or {}
    return {
        "platform": device.platform,
        "kind": device.device_kind,
        "compute_capability": getattr(device, "compute_capability", None),
        "memory_limit": stats.get("bytes_limit"),
    }


def is_usable() -> bool:
    """Whether the device still computes; after an illegal access it does not."""
    import jax
    import jax.numpy as jnp

    try:
        return bool(jax.jit(lambda x: x + 1)(jnp.zeros(())) == 1)
    except jax.errors.JaxRuntimeError:
        return False


if __name__ == "__main__":
    main()
