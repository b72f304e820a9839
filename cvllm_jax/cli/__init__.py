"""The command line: ``cvllm-jax serve | chat | generate | bench | convert | doctor | demo``."""
