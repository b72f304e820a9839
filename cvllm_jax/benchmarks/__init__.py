"""Measure speed: any server that speaks OpenAI's Chat Completions, or an engine in this process."""

from cvllm_jax.benchmarks.client import Outcome, Target, measure
from cvllm_jax.benchmarks.figures import Limits, Summary, percentile, summarize
from cvllm_jax.benchmarks.workload import Lengths, Workload, chat_requests

__all__ = [
    "Lengths",
    "Limits",
    "Outcome",
    "Summary",
    "Target",
    "Workload",
    "chat_requests",
    "measure",
    "percentile",
    "summarize",
]
