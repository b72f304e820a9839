"""The HTTP server: OpenAI's API over a :class:`cvllm_jax.openai.OpenAIAdapter`, with Starlette.

Only the command line imports this package. Programs start it as ``cvllm-jax serve``, or build the
ASGI application themselves with :func:`server.app.create_app`.
"""
