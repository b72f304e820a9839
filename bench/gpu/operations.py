"""Which operations have cases, without importing any of them."""

from bench.machine import ROOT

#: Others' attention, in a group of its own.
ATTENTION_PEERS = "attention of others"


def operations() -> list[str]:
    """Folders of pallas_kernels with a bench.py, attention first and its peers right after."""
    found = sorted(path.parent.name for path in (ROOT / "pallas_kernels").glob("*/bench.py"))
    first = [name for name in found if name == "paged_attention"]
    return [*first, ATTENTION_PEERS, *(name for name in found if name not in first)]
