"""Templates that want out, and templates that want everything: shared by the F6 tests.

``escapes`` end in reading or writing a canary; ``RESOURCES`` in time, memory or output.
"""

from __future__ import annotations

ENVIRONMENT_CANARY = "LOCALRUN_TEMPLATE_CANARY"

# Ways to Python's modules and builtins.
_GLOBALS = {
    "cycler": "cycler.__init__.__globals__",
    "joiner": "joiner.__init__.__globals__",
    "namespace": "namespace.__init__.__globals__",
    "lipsum": "lipsum.__globals__",
    "subscript": "lipsum['__globals__']",
    "attr filter": "(lipsum|attr('__globals__'))",
    "attr chain": "(cycler|attr('__init__')|attr('__globals__'))",
    "hex name": "lipsum['\\x5f\\x5fglobals\\x5f\\x5f']",
    "joined name": "lipsum['__glo' ~ 'bals__']",
    "added name": "lipsum['__glo' + 'bals__']",
    "reversed name": "lipsum['__slabolg__'|reverse]",
    "sliced name": "lipsum['__slabolg__'[::-1]]",
    "name from a dict": "lipsum[dict(__globals__=1)|list|first]",
    "formatted name": "lipsum['__%s__' % 'globals']",
    "instance of a global": "cycler(1).next.__func__.__globals__",
    "method of an instance": "joiner().__call__.__globals__",
    "map attribute": "([cycler]|map(attribute='__init__.__globals__')|first)",
    "map attr": "([lipsum]|map('attr', '__globals__')|first)",
    "groupby": "(([lipsum]|groupby('__globals__'))[0].grouper)",
    "context": "self._TemplateReference__context.environment.__init__.__globals__",
    "self": "self.__init__.__globals__",
    "raise_exception": "raise_exception.__globals__",
    "strftime_now": "strftime_now.__globals__",
    "undefined": "missing.__init__.__globals__",
    "class of undefined": "missing.__class__.__init__.__globals__",
    "class of joiner": "joiner().__class__.__init__.__globals__",
}
_WHOLE = {
    "subclasses": (
        "{% for c in ''.__class__.__mro__[1].__subclasses__() %}"
        "{% if c.__name__ == '_wrap_close' %}"
        "{{ c.__init__.__globals__['environ']['CANARY'] }}{% endif %}{% endfor %}"
    ),
    "subclasses of a number": (
        "{% for c in (1).__class__.__base__.__subclasses__() %}"
        "{% if c.__name__ == '_wrap_close' %}"
        "{{ c.__init__.__globals__.environ.CANARY }}{% endif %}{% endfor %}"
    ),
    "format": "{{ '{0.__init__.__globals__[os].environ}'.format(cycler) }}",
    "format_map": "{{ '{c.__init__.__globals__[os].environ}'.format_map({'c': cycler}) }}",
    "format by name": "{{ '{c.__init__.__globals__[os].environ}'['format'](c=cycler) }}",
    "format through attr": (
        "{{ ('{0.__init__.__globals__[os].environ}'|attr('format'))(cycler) }}"
    ),
    "format through map": (
        "{{ ['{0.__init__.__globals__[os].environ}'.format]|map('string')|first }}"
        "{% set f = '{0.__init__.__globals__[os].environ}'.format %}{{ f(cycler) }}"
    ),
    "format of markup": "{{ ('{0.__init__.__globals__[os].environ}'|escape).format(cycler) }}",
    "macro": (
        "{% macro m() %}{% endmacro %}{{ m.__init__.__globals__.sys.modules.os.environ.CANARY }}"
    ),
    "macro function": (
        "{% macro m() %}{% endmacro %}"
        "{{ m._func.__globals__.environment.__init__.__globals__.os.environ.CANARY }}"
    ),
    "caller": (
        "{% macro m() %}{{ caller.__init__.__globals__ }}{% endmacro %}{% call m() %}{% endcall %}"
        "{{ cycler.__init__.__globals__.os.environ.CANARY }}"
    ),
    "loop": (
        "{% for i in [1] %}{{ loop.__class__.__init__.__globals__.__builtins__"
        "['__import__']('os').environ.CANARY }}{% endfor %}"
    ),
    "generator frame": (
        "{% set g = [1]|map('string') %}{{ g.gi_frame.f_builtins['open']('FILE').read() }}"
    ),
    "generator code": "{{ ([1]|map('string')).gi_code }}{{ lipsum.__globals__.os.environ.CANARY }}",
    "set into a namespace": (
        "{% set n = namespace() %}{% set n.__class__ = cycler %}"
        "{{ n.__class__.__init__.__globals__.os.environ.CANARY }}"
    ),
    "generation block": ("GENERATION{{ lipsum.__globals__.os.environ.CANARY }}ENDGENERATION"),
    "shell": "{{ lipsum.__globals__.os.popen('printenv CANARY').read() }}",
    "write": "{{ lipsum.__globals__.__builtins__.open('TARGET', 'w').write('out') }}",
    "write through eval": (
        "{{ cycler.__init__.__globals__.__builtins__.eval(\"open('TARGET', 'w').write('out')\") }}"
    ),
    "make a directory": "{{ lipsum.__globals__.os.mkdir('TARGET') }}",
    "include": "{% include 'FILE' %}",
    "include upwards": "{% include '../../../../../../../../FILE' %}",
    "import": "{% import 'os' as os %}{{ os.environ.CANARY }}",
    "from import": "{% from 'os' import environ %}{{ environ.CANARY }}",
    "extends": "{% extends 'FILE' %}",
    "tojson": "{{ lipsum|tojson(default=cycler) }}{{ lipsum.__globals__.os.environ.CANARY }}",
}


def escapes(file: str, target: str) -> dict[str, str]:
    """Payloads by name. ``file`` holds the secret to read, ``target`` is the place to write."""
    payloads = {
        f"{name} to {what}": "{{ " + way + end + " }}"
        for name, way in _GLOBALS.items()
        for what, end in (
            ("environment", f"['__builtins__']['__import__']('os').environ.{ENVIRONMENT_CANARY}"),
            ("file", f"['__builtins__']['open']('{file}').read()"),
        )
    }
    for name, source in _WHOLE.items():
        source = source.replace("CANARY", ENVIRONMENT_CANARY).replace("FILE", file)
        source = source.replace("ENDGENERATION", "{% endgeneration %}")
        source = source.replace("GENERATION", "{% generation %}")
        payloads[name] = source.replace("TARGET", target)
    return payloads


_DEEP = "{% for i in [1, 2] %}" * 20 + "x" + "{% endfor %}" * 20

RESOURCES = {
    "nested loops": "{% for i in range(99999) %}" * 2 + "{% endfor %}" * 2,
    "loops in loops in loops": "{% for i in range(99) %}" * 15 + "x" + "{% endfor %}" * 15,
    "power": "{{ 10 ** (10 ** 8) }}",
    "power of a variable": "{% set n = 10 %}{{ (n ** n) ** (n ** n) }}",
    "squares": (
        "{% set n = namespace(v=9) %}{% for i in range(64) %}{% set n.v = n.v * n.v %}{% endfor %}"
    ),
    "repeat": "{{ 'a' * 10 ** 10 }}",
    "repeat a list": "{{ ([0] * 10 ** 10)|length }}",
    "center": "{{ ''|center(10 ** 10) }}",
    "indent": "{{ 'a\nb'|indent(10 ** 10) }}",
    "format width": "{{ '{:1000000000}'.format(1) }}",
    "format width from an argument": "{{ '{:{}}'.format(1, 10 ** 9) }}",
    "percent width": "{{ '%1000000000d' % 1 }}",
    "format filter": "{{ '%1000000000d'|format(1) }}",
    "ljust": "{{ ''.ljust(10 ** 9) }}",
    "zfill": "{{ '1'.zfill(10 ** 9) }}",
    "expandtabs": "{{ '\t'.expandtabs(10 ** 9) }}",
    "doubling by tilde": (
        "{% set n = namespace(v='a' * 1000) %}"
        "{% for i in range(99) %}{% set n.v = n.v ~ n.v %}{% endfor %}"
    ),
    "doubling a list": (
        "{% set n = namespace(v=[0]) %}"
        "{% for i in range(99) %}{% set n.v = n.v + n.v %}{% endfor %}"
    ),
    "replace": "{{ ('a' * 10 ** 6)|replace('a', 'a' * 10 ** 6) }}",
    "join": "{{ range(99999)|join('a' * 10 ** 6) }}",
    "batch": "{{ [0]|batch(10 ** 9, 1)|list|length }}",
    "slice": "{{ [0]|slice(10 ** 9)|list|length }}",
    "flood": "{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}",
    "lipsum": "{{ lipsum(n=10 ** 6) }}",
    "json indent": "{{ [1]|tojson(indent=10 ** 9) }}",
    "clock": "{{ strftime_now('%Y' * 10 ** 6) }}",
    "recursive macro": "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "parentheses": "{{ " + "(" * 60_000 + "1" + ")" * 60_000 + " }}",
    "minus signs": "{{ " + "-" * 60_000 + "1 }}",
    "blocks": "{% if 1 %}" * 5_000 + "{% endif %}" * 5_000,
    "folded at compile time": "{{ 'a'|center(10 ** 8)|center(10 ** 9)|length }}",
    "sort": "{{ (range(99999)|list * 80)|sort|length }}",
    "doubling loops": _DEEP,
}
