"""The command line in a process of its own, with a stand-in for the engine."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Puts a stub where the commands find the engine, then runs the console script's entry.
WITH_STUB = """
import sys, time, types
from stub_engine import Script, StubEngine
from cvllm_jax.errors import ModelLoadError

class InferenceEngine(StubEngine):
    @classmethod
    def new_sync(cls, config):
        if config.model_path == "broken":
            raise ModelLoadError("broken is no model")
        for done in range(3):
            config.progress("loading weights", done, 2)
        time.sleep({load_seconds})
        return cls(Script({script}))

module = types.ModuleType("cvllm_jax.engine.engine")
module.InferenceEngine = InferenceEngine
sys.modules[module.__name__] = module
from cvllm_jax.cli.main import main
sys.argv = ["cvllm-jax", *sys.argv[1:]]
main()
"""


def environment(**extra):
    paths = [str(ROOT), str(ROOT / "tests")]
    # Wide and plain, so that help texts do not break and have no colours
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "200", "NO_COLOR": "1"} | extra


def start(*arguments, script="", load_seconds=0, **extra):
    """`cvllm-jax ARGUMENTS` with the stub, as a running process."""
    code = WITH_STUB.format(script=script, load_seconds=load_seconds)
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
        env=environment(**extra),
    )


def run(*arguments, stdin="", **settings):
    """`cvllm-jax ARGUMENTS` to its end: exit status, standard output, standard error."""
    process = start(*arguments, **settings)
    out, err = process.communicate(stdin, timeout=30)
    return process.returncode, out, err
