"""Parser of temperature expressions: from text such as ``clip(max / log(classes), 1, 16)`` to a ``ParsedExpression``.

The text comes from strangers over HTTP; nothing of it is ever executed or compiled. It is read in three steps, and each
refuses what it does not know:

1. Characters and words: ASCII, bounded in length and in parentheses; plain numbers, the names and functions of the
   language, a handful of signs. What is left holds no string, keyword or attribute. So ``ast`` can neither normalise
   one identifier into another nor warn; silencing its warnings would change filters that all threads of the process
   share.
2. ``ast.parse``, for the grammar and the precedence of operators.
3. A walk that copies the few node classes it knows into frozen nodes of its own, bounded in depth and number.
"""

import ast
import functools
import re
import threading

from workers.errors import InvalidMethod
from workers.methods.expression import (
    COMPARISONS,
    FUNCTIONS,
    NAMES,
    OPERATORS,
    Node,
    Operation,
    ParsedExpression,
    Power,
)
from workers.texts import nearest_name

MAX_CHARACTERS = 500
MAX_DEPTH = 20
MAX_NODES = 200
MAX_NUMBER = 1e9
MAX_EXPONENT = 8

VOCABULARY = f"Names: {', '.join(NAMES)}; functions: {', '.join(FUNCTIONS)}"
SIGNS = "Allowed: numbers, names, functions, + - * / ** ( ) and commas; < <= > >= in where"

_TOKEN = re.compile(
    r"""(?P<number> (?: (?: 0 | [1-9]\d* ) (?: \.\d* )? | \.\d+ ) (?: [eE][+-]?\d+ )? (?![\w.]) )
      | (?P<word> [A-Za-z_]\w* )
      | (?P<sign> [<>]=? | [-+*/(),\ ] )""",
    re.ASCII | re.VERBOSE,
)
_PIECE = re.compile(r"[\w.]+|.", re.ASCII | re.DOTALL)
# CPython counts the depth of a tree that it makes once for all threads, and raises SystemError where two of them make
# one at the same time and a thread is switched in the middle (3.11: "AST constructor recursion depth mismatch").
_ONE_PARSER = threading.Lock()


@functools.lru_cache(maxsize=256)  # a run evaluates its few texts at every step
def parse(text: str) -> ParsedExpression:
    """Read an expression.

    Names, functions and operators are those of this module. ``**`` takes a number of at most ``MAX_EXPONENT``, with or
    without a sign, as its exponent; a comparison stands as the first argument of ``where``, and nowhere else.

    Raises:
        InvalidMethod: anything else; the message has the text, the position counted from 1, what stands there and what
            may.
    """
    _check_words(text)
    start, end = len(text) - len(text.lstrip(" ")), len(text.rstrip(" "))
    body = _grammar(text, start, end)
    if isinstance(body, InvalidMethod):
        raise body
    reading = _Reading(text, start)
    return ParsedExpression(text, reading.node(body, 1), frozenset(reading.names))


def _grammar(text: str, start: int, end: int) -> ast.expr | InvalidMethod:
    """Step 2; a refusal is returned, and not raised among the handlers (``methods.parse_method`` says why)."""
    try:
        with _ONE_PARSER:
            return ast.parse(text[start:end], mode="eval").body
    except SyntaxError as error:
        place = start + error.offset if error.offset else end + 1  # no offset: it ends too early
        pieces = _PIECE.findall(text, place - 1, end)
        found = repr(pieces[0]) if pieces else "the end"
        return _refusal(text, place, f"{error.msg} at {found}. {SIGNS}")
    except (ValueError, RecursionError, MemoryError):
        return _refusal(text, start + 1, f"{text[start:][:40]!r}... is nested too deeply")


def _refusal(text: str, place: int, problem: str) -> InvalidMethod:
    shown = text if len(text) <= 80 else f"{text[:77]}..."
    return InvalidMethod(f"expression {shown!a}, position {place}: {problem}")


def _check_words(text: str) -> None:
    """Step 1: only known words, plain numbers and signs, in bounds."""
    if len(text) > MAX_CHARACTERS:
        raise _refusal(text, MAX_CHARACTERS + 1, f"{len(text)} characters; at most {MAX_CHARACTERS} are allowed")
    if not text.strip(" "):
        raise _refusal(text, 1, f"the expression is empty. {SIGNS}")
    at = depth = 0
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None:
            raise _refusal(text, at + 1, f"{_PIECE.findall(text, at)[0][:40]!a} is not allowed. {SIGNS}")
        if token["word"]:
            _check_word(text, token)
        depth += {"(": 1, ")": -1}.get(token.group(), 0)
        if depth > MAX_DEPTH:
            raise _refusal(text, at + 1, f"'(' is nested too deeply; at most {MAX_DEPTH} levels are allowed")
        at = token.end()


def _check_word(text: str, token: re.Match[str]) -> None:
    word = token.group()
    called = text[token.end() :].lstrip(" ").startswith("(")
    kind, known, other = ("function", FUNCTIONS, NAMES) if called else ("name", NAMES, FUNCTIONS)
    if word in known:
        return
    if word in other:
        hint = f"{word!r} is a name, not a function" if called else f"{word!r} is a function: write {word}(...)"
        raise _refusal(text, token.start() + 1, f"{hint}. {VOCABULARY}")
    nearest = nearest_name(word, known)
    hint = f" Did you mean {nearest!r}?" if nearest else ""
    raise _refusal(text, token.start() + 1, f"unknown {kind} {word[:40]!r}.{hint} {VOCABULARY}")


class _Reading:
    """Step 3: the walk over one text's ``ast`` nodes, whose columns count from ``start``."""

    def __init__(self, text: str, start: int) -> None:
        self.text, self.start = text, start
        self.names: set[str] = set()
        self.count = 0

    def refusal(self, node: ast.expr | ast.keyword, problem: str) -> InvalidMethod:
        place, end = self.start + node.col_offset, self.start + (node.end_col_offset or 0)
        piece = self.text[place:end]
        shown = piece if len(piece) <= 40 else f"{piece[:37]}..."
        return _refusal(self.text, place + 1, f"{shown!a} {problem}")

    def node(self, node: ast.expr, depth: int, comparison: bool = False) -> Node:
        """The own form of a node at a depth counted from 1; of a comparison exactly where one belongs."""
        self.count += 1
        if depth > MAX_DEPTH:
            raise self.refusal(node, f"is nested too deeply; at most {MAX_DEPTH} levels are allowed")
        if self.count > MAX_NODES:
            raise self.refusal(node, f"is one too many; at most {MAX_NODES} numbers, names and operations are allowed")
        if comparison and not isinstance(node, ast.Compare):
            raise self.refusal(node, "is no condition; where takes one of a < b, a <= b, a > b, a >= b first")
        match node:
            case ast.Constant():
                return self.number(node, MAX_NUMBER)
            case ast.Name(id=name) if name in NAMES:
                self.names.add(name)
                return name
            case ast.UnaryOp(op=op, operand=operand) if type(op) in OPERATORS:
                return Operation(OPERATORS[type(op)], self.nodes([operand], depth))
            case ast.BinOp(left=base, op=ast.Pow(), right=exponent):
                return Power(self.node(base, depth + 1), self.number(exponent, MAX_EXPONENT))
            case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
                return Operation(OPERATORS[type(op)], self.nodes([left, right], depth))
            case ast.Compare(left=left, ops=[op], comparators=[right]) if comparison and type(op) in COMPARISONS:
                return Operation(COMPARISONS[type(op)], self.nodes([left, right], depth))
            case ast.Compare():
                raise self.refusal(node, "may only be one of < <= > >=, once, and only as the condition of where")
            case ast.Call():
                return self.call(node, depth)
        raise self.refusal(node, f"is not allowed. {SIGNS}")

    def nodes(self, nodes: list[ast.expr], depth: int) -> tuple[Node, ...]:
        return tuple(self.node(node, depth + 1) for node in nodes)

    def number(self, node: ast.expr, bound: float) -> float:
        """The value of a literal, with or without a sign."""
        sign, literal = 1.0, node
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd | ast.USub):
            sign, literal = (-1.0 if isinstance(node.op, ast.USub) else 1.0), node.operand
        value = literal.value if isinstance(literal, ast.Constant) else None
        # True is an int; infinity fails the comparison, and a huge int is compared without becoming a float.
        if isinstance(value, bool) or not isinstance(value, int | float) or not value <= bound:
            raise self.refusal(node, f"is not allowed here; it must be a plain number from -{bound:g} to {bound:g}")
        return sign * value

    def call(self, node: ast.Call, depth: int) -> Node:
        if not isinstance(node.func, ast.Name) or node.func.id not in FUNCTIONS:
            raise self.refusal(node.func, f"is not a function. {VOCABULARY}")
        name, given = node.func.id, len(node.args)
        if node.keywords:
            raise self.refusal(node.keywords[0], "is not allowed: arguments are given by their order alone")
        function = FUNCTIONS[name]
        if given < function.least or (function.most is not None and given > function.most):
            wanted = f"{function.least} or more" if function.most is None else function.least
            raise self.refusal(node, f"has the wrong number of arguments, {given}; {name} takes {wanted}")
        arguments = (self.node(one, depth + 1, name == "where" and one is node.args[0]) for one in node.args)
        return Operation(function, tuple(arguments))
