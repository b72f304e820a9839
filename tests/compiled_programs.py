"""Compiled programs that tests share, and letting go of them: each is hundreds of memory maps."""

import gc
from pathlib import Path

#: What the fixture ``make_engine`` has made, by its settings.
ENGINES = {}


def let_go_of_programs_if_many():
    """Linux gives a process 65,530 memory maps, and XLA crashes where it gets no more."""
    maps = Path("/proc/self/maps")
    if not maps.exists() or maps.read_bytes().count(b"\n") <= 32_000:
        return
    import jax

    # an engine would compile its programs anew, and no warm-up would do it: who asks for one gets a fresh one. Those
    # with a script are held for the whole run by fixtures.
    for key, engine in list(ENGINES.items()):
        if not dict(key)["model_path"].startswith("scripted:"):
            del ENGINES[key]
            engine.close()
    jax.clear_caches()
    gc.collect()
