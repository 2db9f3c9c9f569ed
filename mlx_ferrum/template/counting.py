"""Puts counters into parsed templates.

They are calls of internal filters: a template can give any variable another meaning, but no filter.
"""

from __future__ import annotations

from typing import TypeVar

from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.visitor import NodeTransformer

STEP, MEASURED, JOINED = "_step", "_measured", "_joined"
_Body = TypeVar("_Body", nodes.For, nodes.Macro, nodes.CallBlock)


class Counters(NodeTransformer):
    """Loop rounds and macro calls count steps; lists, tuples, dicts and `~` are measured."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self._count(node)
        if node.test is not None:
            step = _filter(nodes.Const(1, lineno=node.lineno), STEP)
            node.test = nodes.And(step, node.test, lineno=node.lineno)
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Macro:
        return self._count(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.CallBlock:
        return self._count(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes, lineno=node.lineno), JOINED)

    def visit_List(self, node: nodes.List) -> nodes.Filter:
        self.generic_visit(node)
        return _filter(node, MEASURED)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Filter:
        self.generic_visit(node)
        return _filter(node, MEASURED)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:
        self.generic_visit(node)
        return _filter(node, MEASURED) if node.ctx == "load" else node

    def _count(self, node: _Body) -> _Body:
        text = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        self.generic_visit(node)
        step = _filter(nodes.Const(1 + text, lineno=node.lineno), STEP)
        node.body.insert(0, nodes.ExprStmt(step, lineno=node.lineno))
        return node


class Generation(Extension):
    """`{% generation %}`, which marks replies for training: here a block like any text."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The statements inside, as they are."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _filter(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
