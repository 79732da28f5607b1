"""
Work out one arithmetic expression a line. Knows nothing of jobgate: run it by hand and type.

    curl http://127.0.0.1:8080/call/calc -d '(2 ** 61 - 1) % 97 + sqrt(2)'
"""

from __future__ import annotations

import ast
import math
import operator
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

LONGEST = 1000  # characters of an expression
WIDEST = 4096  # bits of a whole number: 9 ** 9 ** 9 would have over a thousand million

OPERATORS: dict[type[ast.AST], Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
FUNCTIONS: dict[str, Callable[..., float]] = {
    **{name: getattr(math, name) for name in ("sqrt", "exp", "log", "log2", "log10")},
    **{name: getattr(math, name) for name in ("sin", "cos", "tan", "atan", "floor", "ceil")},
    "abs": abs,
    "round": lambda number: round(number),  # noqa: PLW0108 - with two it could take for ever
    "min": min,
    "max": max,
}
CONSTANTS = {"pi": math.pi, "e": math.e, "tau": math.tau}


def evaluate(node: ast.AST) -> float:
    """
    Work out a parsed expression, of which nothing but arithmetic is believed.

    Raises:
        ValueError: It is no arithmetic, or its numbers grow too large.
    """
    match node:
        case ast.Expression(body=body):
            return evaluate(body)
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return bounded(value)
        case ast.Name(id=name) if name in CONSTANTS:
            return CONSTANTS[name]
        case ast.UnaryOp(op=op, operand=operand) if type(op) in OPERATORS:
            return OPERATORS[type(op)](evaluate(operand))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            a, b = evaluate(left), evaluate(right)
            if isinstance(op, ast.Pow) and isinstance(a, int) and a.bit_length() * abs(b) > WIDEST:
                raise ValueError("too large")
            return bounded(OPERATORS[type(op)](a, b))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in FUNCTIONS:
            return bounded(FUNCTIONS[name](*map(evaluate, args)))
    raise ValueError("only arithmetic, please")


def bounded(value: float) -> float:
    """
    Return a number that is real and not too wide, as all that goes on must be.
    """
    if not isinstance(value, (int, float)):
        raise ValueError("not a real number")  # noqa: TRY004 - (-1) ** 0.5 is no type error
    if isinstance(value, int) and value.bit_length() > WIDEST:
        raise ValueError("too large")
    return value


def answer(line: str) -> str:
    """
    Return the result as text, or what is wrong: one line, whatever came in.
    """
    if len(line) > LONGEST:
        return f"error: over {LONGEST} characters"
    try:
        expression = ast.parse(line.strip(), mode="eval")
    except (SyntaxError, ValueError):
        # A null byte is the one or the other, with the version of Python.
        return "error: not an expression"
    except (RecursionError, MemoryError):
        return "error: nested too deeply"
    try:
        return str(evaluate(expression))
    except (RecursionError, MemoryError):
        return "error: nested too deeply"
    except TypeError:
        return "error: a function does not take these"
    except Exception as error:  # noqa: BLE001 - the next line deserves an answer too
        return "error: " + " ".join(str(error).split())


def main() -> None:
    """
    Answer until the input ends. Lines end at a newline only: one in, one out.
    """
    for line in sys.stdin.buffer:
        print(answer(line.decode(errors="replace")), flush=True)


if __name__ == "__main__":
    main()
