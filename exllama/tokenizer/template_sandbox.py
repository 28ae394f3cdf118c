"""jinja2's immutable sandbox with limits: what chat templates, which come with untrusted models, run in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jinja2
from jinja2 import Environment, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from exllama.errors import TemplateError
from exllama.tokenizer.template_budget import Budget, add, budget, multiply, power, start, stop
from exllama.tokenizer.template_functions import (
    FILTERS,
    GLOBALS,
    concat,
    percent,
    prepare_call,
    prepare_format,
    slice_of,
)

MAX_LEXEMES = 24_000  # 40 KB of dense template code, which compiles in 0.6 s
_REFUSED = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends, nodes.Block)
_BINARY: dict[str, Callable[[Any, Any], Any]] = {"*": multiply, "**": power, "+": add, "%": percent}


class _Generation(Extension):
    """`{% generation %} ... {% endgeneration %}` marks the answer for training; here it is just its content."""

    tags = {"generation"}  # noqa: RUF012 - declared so by jinja2

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of one template; thread-safe, as the budget belongs to the calling context."""

    intercepted_binops = frozenset(_BINARY)

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols],
                         finalize=_finalize, cache_size=0)  # fmt: skip
        self.filters = dict(FILTERS)
        self.globals = dict(GLOBALS)
        self.loop_tick, self.ticked, self.join_texts, self.slice_of = _loop_tick, _ticked, concat, slice_of

    def compile_limited(self, source: str) -> jinja2.Template:
        """The template of a source text, with its loops, macros and concatenations put under the budget."""
        for count, _ in enumerate(self.lex(source)):
            if count > MAX_LEXEMES:
                raise TemplateError(f"the chat template has more than {MAX_LEXEMES} parts")
        tree = self.parse(source)
        _transform(tree, self)
        code = self.compile(tree)
        return self.template_class.from_code(self, code, self.make_globals(None))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Operators that can make something large."""
        return _BINARY[operator](left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Every call of a template."""
        budget().tick()
        prepare_format(__obj, [*args, *(value for name, value in kwargs.items() if not name.startswith("_"))])
        result = super().call(__context, __obj, *prepare_call(__obj, args), **kwargs)
        budget().pay_result(result)
        return result


def render(source: str, compiled: dict[str, jinja2.Template], variables: dict[str, Any], inputs: int) -> str:
    """The text of a template, compiled once; every failure becomes a TemplateError."""
    try:
        if source not in compiled:
            compiled[source] = _limited(Budget(), lambda: Sandbox().compile_limited(source))
        template = compiled[source]
        context = template.new_context(variables)
        return str(_limited(Budget(inputs), lambda: "".join(template.root_render_func(context))))
    except TemplateError:
        raise
    except RecursionError as error:
        raise TemplateError("the chat template nests or calls itself too deeply") from error
    except Exception as error:
        raise TemplateError(f"the chat template failed: {type(error).__name__}: {str(error)[:1000]}") from error


def _limited(account: Budget, work: Callable[[], Any]) -> Any:
    token = start(account)
    try:
        return work()
    finally:
        stop(token)


def _finalize(value: Any) -> str:
    """Every printed expression."""
    if not isinstance(value, str):
        budget().size(value)
        value = str(value)
    budget().pay(len(value))
    return str(value)


def _loop_tick(literal: int) -> None:
    """Stands at the head of every loop and macro body, which prints `literal` characters of its own."""
    budget().pay(literal + 1)


def _ticked(value: Any) -> Any:
    """Stands around every comparison: `in` searches a text, which takes milliseconds when that is long."""
    return value


def _transform(tree: nodes.Template, environment: Environment) -> None:
    for node in _all_nodes(tree):
        if isinstance(node, _REFUSED):
            kind = type(node).__name__.lower()
            raise TemplateError(f"the chat template uses {kind}, and there are no other templates")
        if isinstance(node, (nodes.For, nodes.Macro, nodes.CallBlock)):
            literal = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
            node.body.insert(0, nodes.ExprStmt(_call("loop_tick", [nodes.Const(literal)])))
        for name, value in node.iter_fields():
            if isinstance(value, list):
                setattr(node, name, [_replacement(item) for item in value])
            else:
                setattr(node, name, _replacement(value))
    tree.set_environment(environment)
    tree.set_lineno(1)


def _all_nodes(tree: nodes.Node) -> Iterator[nodes.Node]:
    """Every node, listed before anything changes."""
    found: list[nodes.Node] = [tree]
    for node in found:
        found.extend(node.iter_child_nodes())
    return iter(found)


def _replacement(value: Any) -> Any:
    if isinstance(value, (nodes.Compare, nodes.Test)):
        return _call("ticked", [value])
    if isinstance(value, nodes.Concat):
        return _call("join_texts", value.nodes)
    if isinstance(value, nodes.Getitem) and isinstance(value.arg, nodes.Slice):
        bounds = [bound or nodes.Const(None) for bound in (value.arg.start, value.arg.stop, value.arg.step)]
        return _call("slice_of", [value.node, *bounds])
    return value


def _call(attribute: str, arguments: list[nodes.Expr]) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(attribute), arguments, [], None, None)
