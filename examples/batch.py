"""Many prompts at once, driven by the caller: python batch.py [MODEL] < prompts.txt

The engine takes a prompt a line, decodes as many together as it has places for, and admits the next one as soon as a
place is free. Answers are printed in the order in which they are finished.
"""

import sys
from collections.abc import Iterable, Iterator

from cvllm_jax import GenerationOutput, GenerationParams, InferenceEngine, InferenceRequest, RequestUpdate
from cvllm_jax.checkpoints.demo import find_demo_model


def answers(
    engine: InferenceEngine, prompts: Iterable[str], params: GenerationParams
) -> Iterator[tuple[str, GenerationOutput]]:
    """Each prompt with its answer, the first to be finished first. Raises what a request failed with."""
    waiting = {}
    for prompt in prompts:
        tokens = engine.chat_template.encode([{"role": "user", "content": prompt}])
        waiting[engine.add_request(InferenceRequest(prompt=tokens, params=params))] = prompt
    while waiting:
        for update in engine.step():
            match update:
                case RequestUpdate.Completed(output, handle):
                    yield waiting.pop(handle), output
                case RequestUpdate.Failed(error):
                    raise error
                case RequestUpdate.Token():
                    pass  # a program that shows answers as they grow would print update.text here


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else find_demo_model()
    prompts = [line.strip() for line in sys.stdin if line.strip()]
    params = GenerationParams(max_tokens=64, temperature=0.0)
    with InferenceEngine.builder().model_path(model).build_sync() as engine:
        for prompt, output in answers(engine, prompts, params):
            print(f"Q: {prompt}\nA: {output.text}\n")
        stats = engine.stats()
    print(f"{stats.generated_tokens} tokens in {stats.steps} steps", file=sys.stderr)


if __name__ == "__main__":
    main()
