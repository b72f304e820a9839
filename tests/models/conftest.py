import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))  # modules that these tests share; importlib mode adds no folder by itself

import pytest
from compiled_programs import let_go_of_programs_if_many


@pytest.fixture(autouse=True)
def _few_memory_maps_in_a_module():
    """One module compiles the programs of all families."""
    yield
    let_go_of_programs_if_many()
