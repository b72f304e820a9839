"""The site's hooks. docs/import_diagram.py draws what tests/test_structure.py checks."""

import importlib.util
import sys
from pathlib import Path
from xml.etree import ElementTree

from conftest import ROOT

sys.path.append(str(Path(__file__).parents[1]))
from test_structure import edges


def load_hook(name="import_diagram"):
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_diagram_has_the_imports_that_there_are():
    drawn = {(unit, name) for unit, names in load_hook().needed().items() for name in names}
    there_are = {(source, target) for _, source, target, types_only in edges() if not types_only}
    assert drawn <= there_are
    assert ("engine", "models") in drawn
    assert ("server", "openai") in drawn


def test_arrows_that_follow_from_others_are_left_out():
    hook = load_hook()
    arrows = hook.arrows({"top": {"middle", "low"}, "middle": {"low"}, "low": set()})
    assert arrows == {"top": {"middle"}, "middle": {"low"}, "low": set()}
    svg = ElementTree.fromstring(hook.drawing(arrows))
    heights = {box.text: float(box.get("y")) for box in svg.iter("text")}
    assert heights["top"] < heights["middle"] < heights["low"]
    assert len(list(svg.iter("line"))) == 2


def test_roles_are_shown_as_names():
    html = "<p>See :class:<code>~cvllm_jax.engine.plan.Plan</code>, :meth:<code>tokenize</code>, <code>:x</code>.</p>"
    shown = "<p>See <code>Plan</code>, <code>tokenize</code>, <code>:x</code>.</p>"
    assert load_hook("roles").on_page_content(html) == shown
