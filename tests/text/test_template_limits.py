"""A hostile template stops at a limit: soon, with one sentence, and without taking the memory it asks for."""

import resource
import time

import pytest

from cvllm_jax.errors import TokenizationError
from cvllm_jax.text import ChatTemplate

STEPS = "takes more than 1,000,000 steps"
WIDTH = "a width that is computed"
BITS = "integers of more than 4096 bits"
BIG = 10**9
#: Doubles what it holds a hundred times over.
GROW = "{{% set ns = namespace(s='aaaaaaaa') %}}{{% for i in range(100) %}}{}{{% endfor %}}"
#: A list that holds itself twice, a hundred levels down: short in memory, endless when read.
SHARED = (
    "{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(100) %}"
    "{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}"
)
TUPLES = "{% set ns = namespace(a=(1,)) %}{% for i in range(100) %}{% set ns.a = (ns.a, ns.a) %}{% endfor %}"
LIST = "{% set l = range(99999)|list %}{% for i in range(99999) %}"
TEXT = "{% set l = 'a' * 9999999 %}{% for i in range(99999) %}"

LOOPS = {
    "{% for i in range(10**12) %}x{% endfor %}": "a range of more than 100,000 numbers",
    "{% for i in range(10**30) %}x{% endfor %}": "a range of more than 100,000 numbers",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}": STEPS,
    "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}": STEPS,
    "{% for i in range(99999) %}" + "x" * 5000 + "{% endfor %}": "writes more than 16,777,216 characters",
    "{% for i in range(99999) %}{% set x = range(99999)|sum %}{% endfor %}": STEPS,
    "{% for i in range(99999) %}{% set x = range(99999)|map(attribute='x')|list %}{% endfor %}": STEPS,
    "{% for i in range(99999) %}{% set x = range(99999)|selectattr('x')|list %}{% endfor %}": STEPS,
    "{% for i in range(99999) %}{% for j in range(99999)|map(attribute='x') %}{{ loop.length }}"
    "{% break %}{% endfor %}{% endfor %}": STEPS,
    LIST + "{% set x = -1 in l %}{% endfor %}": STEPS,
    LIST + "{% set x = l[1:] %}{% endfor %}": STEPS,
    LIST + "{% set x = l == l + [] %}{% endfor %}": STEPS,
    LIST + "{% set x = l|sort %}{% endfor %}": STEPS,
    LIST + "{% set x = l.count(3) %}{% endfor %}": STEPS,
    LIST + "{% set x = l|select('in', l)|list %}{% endfor %}": STEPS,
    TEXT + "{% set x = l.upper() %}{% endfor %}": STEPS,
    TEXT + "{% set x = l|upper %}{% endfor %}": STEPS,
    TEXT + "{% set x = 'b' in l %}{% endfor %}": STEPS,
    TEXT + "{% set x = l is upper %}{% endfor %}": STEPS,
    TEXT + "{% set x = l ~ 'a' %}{% endfor %}": STEPS,
    TEXT + "{% set x = l.split('a') %}{% endfor %}": STEPS,
}
RECURSION = {
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}": "64 levels deep",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(50) }}": STEPS,
    "{% block a %}{{ self.a() }}{% endblock %}": "64 levels deep",
    "{% for x in [[]] recursive %}{{ loop([x]) }}{% endfor %}": "64 levels deep",
}
SIZES = {
    "{{ 'a' * 10**10 }}": STEPS,
    "{{ 10**10 * 'a' }}": STEPS,
    "{{ [0] * 10**10 }}": STEPS,
    "{{ 7**99999999 }}": BITS,
    "{% set ns = namespace(x=3) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}": BITS,
    f"{{{{ 'a'|center({BIG}) }}}}": STEPS,
    f"{{{{ 'a'.center({BIG}) }}}}": STEPS,
    f"{{{{ 'a'.ljust({BIG}) }}}}": STEPS,
    f"{{{{ 'a'.zfill({BIG}) }}}}": STEPS,
    f"{{{{ '\t'.expandtabs({BIG}) }}}}": STEPS,
    f"{{{{ ['a']|map('center', {BIG})|list }}}}": STEPS,
    f"{{{{ ('a'|attr('center'))({BIG}) }}}}": STEPS,
    f"{{{{ ('a'|safe).center({BIG}) }}}}": STEPS,
    f"{{{{ 'a'|indent({BIG}, true) }}}}": STEPS,
    f"{{{{ [1]|batch({BIG}, 0)|list }}}}": STEPS,
    f"{{{{ [1]|slice({BIG})|list }}}}": STEPS,
    f"{{{{ 1.5|round({BIG}) }}}}": "more than 100 decimals",
    f"{{{{ [1]|tojson(indent={BIG}) }}}}": "indents JSON by more than 64",
    "{{ range(99999)|map('center', 99999)|join }}": STEPS,
    GROW.format("{% set ns.s = ns.s ~ ns.s %}"): STEPS,
    GROW.format("{% set ns.s = ns.s + ns.s %}"): STEPS,
    GROW.format("{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}"): "writes more than",
    GROW.format("{% set ns.s = ns.s.replace('a', 'aaaa') %}"): STEPS,
    GROW.format("{% set ns.s = ns.s|replace('a', 'aaaa') %}"): STEPS,
    GROW.format("{% set ns.s = ns.s.join([ns.s] * 9) %}"): STEPS,
    GROW.format("{% set ns.s = ns.s|list|join(ns.s) %}"): STEPS,
    GROW.format("{% set ns.s = '%s%s' % (ns.s, ns.s) %}"): STEPS,
    GROW.format("{% set ns.s = '{0}{0}'.format(ns.s) %}"): STEPS,
}
FORMATS = {
    f"{{{{ '%{BIG}d' % 1 }}}}": STEPS,
    f"{{{{ '%.{BIG}f' % 1.5 }}}}": STEPS,
    f"{{{{ '%((a)){BIG}d' % {{'(a)': 1}} }}}}": STEPS,
    f"{{{{ '%*d' % ({BIG}, 1) }}}}": WIDTH,
    f"{{{{ '%{BIG}d'|format(1) }}}}": STEPS,
    f"{{{{ '{{:{BIG}}}'.format(1) }}}}": STEPS,
    f"{{{{ '{{:{{}}}}'.format(1, {BIG}) }}}}": WIDTH,
    f"{{{{ '{{a:{BIG}}}'.format_map({{'a': 1}}) }}}}": STEPS,
    f"{{% set f = '{{:{BIG}}}'.format %}}{{{{ f(1) }}}}": STEPS,
    f"{{{{ ('%{BIG}d'|safe) % 1 }}}}": STEPS,
    f"{{{{ ('{{:{BIG}}}'|safe).format(1) }}}}": STEPS,
    "{{ strftime_now('%Y' * 99999) }}": "more than 128 characters",
}
SHARING = {
    SHARED + "{{ ns.a }}": STEPS,
    SHARED + "{{ ns.a|string }}": STEPS,
    SHARED + "{{ ns.a|tojson }}": STEPS,
    SHARED + "{{ 'x' ~ ns.a }}": STEPS,
    SHARED + "{{ ns.a == ns.b }}": STEPS,
    SHARED + "{{ ns.a is eq(ns.b) }}": STEPS,
    SHARED + "{{ ns.a in [ns.b] }}": STEPS,
    SHARED + "{{ [ns.b].index(ns.a) }}": STEPS,
    SHARED + "{{ '%s' % ns.a }}": STEPS,
    SHARED + "{{ raise_exception(ns.a) }}": STEPS,
    "{% set ns = namespace(a=1) %}{% for i in range(99) %}"
    "{% set ns.a = [0, 0]|map('default', ns.a, true)|list %}{% endfor %}{{ ns.a }}": STEPS,
    TUPLES + "{{ {ns.a: 1} }}": "a tuple as a key",
    TUPLES + "{{ {}[ns.a] }}": "looks a tuple up",
    TUPLES + "{{ ns.a in {} }}": STEPS,
    TUPLES + "{{ {}.get(ns.a) }}": STEPS,
    TUPLES + "{{ [ns.a]|unique|list }}": STEPS,
    "{% set ns = namespace(a=1) %}{% for i in range(999) %}"
    "{% set ns.a = [ns.a] %}{% endfor %}{{ ns.a }}": "more than 256 deep",
}
ESCAPES = {
    "{{ ''.__class__.__mro__ }}": "'__class__' of 'str' object is unsafe",
    "{{ cycler.__init__.__globals__ }}": "is unsafe",
    "{{ messages.append(1) }}": "'append' of 'list' object is unsafe",
    "{{ (1).to_bytes(10**10, 'big') }}": "int.to_bytes, which templates may not",
    "{{ 'a'.encode() }}": "str.encode, which templates may not",
    "{{ 'a'.translate({97: 'b' * 99}) }}": "str.translate, which templates may not",
    "{{ namespace(__x=1) }}": "may not begin with an underscore",
    "{{ lipsum(10**9) }}": "'lipsum' is undefined",
}
SOURCES = {
    "x" * 70_000: "70,000 characters; at most 65,536",
    "{{ " + "(" * 3000 + ")" * 3000 + " }}": "nested too deeply",
    "{{ " + "-" * 50_000 + "1 }}": "nested too deeply",
    "{{ a" + ".b" * 30_000 + " }}": "nested too deeply",
    "{% for a in b %}" * 30 + "{% endfor %}" * 30: "nested blocks",
    f"{{% autoescape 'a'|center({BIG}) %}}{{% endautoescape %}}": STEPS,
}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        pytest.param(source, message, id=f"{source[:60]} {len(source)}")
        for group in (LOOPS, RECURSION, SIZES, FORMATS, SHARING, ESCAPES, SOURCES)
        for source, message in group.items()
    ],
)
def test_hostile_templates(source: str, message: str) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    with pytest.raises(TokenizationError) as caught:
        ChatTemplate(source).render([{"role": "user", "content": "hi"}])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert time.process_time() - start < 5  # on a busy machine; alone it is less than one
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 300_000  # KiB


def test_long_conversations_are_far_from_the_limits() -> None:
    template = ChatTemplate(
        "{% for m in messages %}{% if loop.index0 == messages|length - 1 %}last{% endif %}"
        "{% if 'tool_calls' in m %}{{ m.tool_calls|tojson }}{% endif %}{{ '<|' ~ m.role ~ '|>' }}"
        "{{ m.content|trim }}{% endfor %}"
    )
    messages = [{"role": "user", "content": "a long message " * 40}] * 10_000
    assert len(template.render(messages)) > 6_000_000


def test_the_limits_are_of_one_rendering() -> None:
    template = ChatTemplate("{% for i in range(90000) %}{% set x = i + 1 %}{% endfor %}ok")
    assert [template.render([]) for _ in range(12)] == ["ok"] * 12
