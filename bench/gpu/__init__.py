"""Everything that is measured on an NVIDIA GPU: ``python -m bench.gpu --help``."""
