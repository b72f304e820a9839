"""The shape of the code: who imports whom, what an import costs, how long a file is."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import cvllm_jax

ROOT = Path(__file__).parents[1]
PACKAGES = ("cvllm_jax", "pallas_kernels", "server")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

#: Lowest first. A unit may import its own layer's units (without circles) and the layers before it.
LAYERS = (
    {"errors", "params", "info", "config", "closing"},
    {"pallas_kernels"},
    {"models", "testing", "checkpoints", "text", "grammar"},
    {"engine"},
    {"openai", "benchmarks"},
    {"mcp", "responses"},
    {"__init__"},  # the facade
    {"server", "cli"},
    {"__main__"},
)
LEVEL = {unit: level for level, layer in enumerate(LAYERS) for unit in layer}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def unit_of(module: str) -> str | None:
    """The unit a dotted module name belongs to; None for code that is not ours."""
    top, _, rest = module.partition(".")
    if top == "cvllm_jax":
        return rest.partition(".")[0] or "__init__"
    return top if top in PACKAGES else None


def imports(node: ast.AST, module: str, *, types_only: bool = False) -> Iterator[tuple[str, bool]]:
    """Every module that a file imports, in functions too, and whether only for type checkers."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, types_only) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            above = module.split(".")[: -child.level] if child.level else []
            base = ".".join([*above, *filter(None, [child.module])])
            for alias in child.names:
                if base != "cvllm_jax":
                    yield base, types_only
                elif alias.name != "__version__":  # the facade is for users; inside, import from its home
                    yield f"{base}.{alias.name}" if alias.name in LEVEL else base, types_only
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            for branch, checked in ((child.body, True), (child.orelse, types_only)):
                for statement in branch:
                    yield from imports(ast.Module([statement], []), module, types_only=checked)
        else:
            yield from imports(child, module, types_only=types_only)


def edges() -> Iterator[tuple[Path, str, str, bool]]:
    for path in SOURCES:
        source = unit_of(module_name(path))
        for target, types_only in imports(ast.parse(path.read_text()), module_name(path)):
            if source and (unit := unit_of(target)) and unit != source:
                yield path, source, unit, types_only


def test_every_unit_has_a_layer():
    assert {unit_of(module_name(path)) for path in SOURCES} <= LEVEL.keys()


def test_nothing_imports_upward():
    assert not [f"{path}: {target}" for path, source, target, _ in edges() if LEVEL[target] > LEVEL[source]]


def test_units_import_without_circles():
    wants: dict[str, set[str]] = {}
    for _, source, target, types_only in edges():
        if not types_only:
            wants.setdefault(source, set()).add(target)
    while free := [unit for unit in wants if not wants[unit] & wants.keys()]:
        for unit in free:
            del wants[unit]
    assert not wants


def test_only_the_console_script_imports_the_server():
    assert {source for _, source, target, _ in edges() if target == "server"} <= {"cli"}


def test_kernels_need_only_jax():
    allowed = {"pallas_kernels", "jax", "jaxlib", "numpy", "jaxtyping", *sys.stdlib_module_names}
    used = {
        target.partition(".")[0]
        for path in (ROOT / "pallas_kernels").rglob("*.py")
        for target, _ in imports(ast.parse(path.read_text()), module_name(path))
    }
    assert used <= allowed


def test_no_private_jax():
    private = "jax." + "_src"
    files = [*SOURCES, *(path for folder in ("tests", "bench") for path in (ROOT / folder).rglob("*.py"))]
    assert not [path for path in files if private in path.read_text()]


def test_files_stay_short():
    lengths = {str(path): len(path.read_text().splitlines()) for path in SOURCES}
    assert not {path: lines for path, lines in lengths.items() if lines > 400}


@pytest.mark.parametrize("name", cvllm_jax.__all__)
def test_every_public_name_loads(name):
    assert getattr(cvllm_jax, name).__name__ == name


def test_public_names_and_their_homes_agree():
    homes = [name for names in cvllm_jax._HOMES.values() for name in names]
    assert sorted(homes) == sorted(cvllm_jax.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = cvllm_jax.nothing


def test_import_is_cheap():
    code = "import time; start = time.perf_counter(); import cvllm_jax; print(time.perf_counter() - start)"
    assert min(float(run_python(code)) for _ in range(5)) < 0.3


def test_engine_runs_without_the_optional_packages():
    """jax, flax, numpy, safetensors, tokenizers, jinja2 and jaxtyping are enough for the engine to import."""
    units = ("models", "text", "engine")
    modules = [module_name(path).removesuffix(".__init__") for path in SOURCES]
    wanted = [name for name in modules if name.startswith(tuple(f"cvllm_jax.{unit}" for unit in units))]
    run_python(f"""
import importlib, sys
BLOCKED = {{"pydantic", "gguf", "huggingface_hub", "starlette", "uvicorn", "httpx", "openai", "typer"}}
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{{name}} must not be needed here")
sys.meta_path.insert(0, Block())
for name in {wanted!r}:
    importlib.import_module(name)
""")


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
