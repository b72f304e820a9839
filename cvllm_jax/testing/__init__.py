"""The scripted model: a tiny model whose logits spell a script, to try wire behaviour without a capable model.

``cvllm-jax serve scripted:FILE`` and ``EngineConfig(model_path="scripted:FILE")`` run it in the real engine.
"""

from cvllm_jax.testing.checkpoint import SCHEME, ScriptedCheckpoint, open_scripted
from cvllm_jax.testing.model import SCRIPTED

__all__ = ["SCHEME", "SCRIPTED", "ScriptedCheckpoint", "open_scripted"]
