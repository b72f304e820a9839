"""The command line: ``cvllm-jax serve | chat | generate | doctor | demo``."""
