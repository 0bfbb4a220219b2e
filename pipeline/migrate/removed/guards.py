"""Below which version of TensorRT the branches of a script run, as their tests say."""

from __future__ import annotations

import ast
import re

from trtq.pipeline.migrate.removed.names import MEMBERS, REMOVED
from trtq.pipeline.migrate.removed.scopes import Names, Scope, read_dotted

UNBOUND = 99
"""The major version of TensorRT below which everything runs."""

Bounds = tuple[int, int]
"""Below which major version code runs where a test holds, and where it fails."""

_MIRRORED = {ast.Lt: ast.Gt, ast.Gt: ast.Lt, ast.LtE: ast.GtE, ast.GtE: ast.LtE}
_NUMBERS = re.compile(r"\d{1,9}(\.\d{1,9})*")


class VersionTests:
    """Reads what the tests of one script say about the version of TensorRT."""

    def __init__(self, names: Names) -> None:
        self._names = names

    def bounds(self, test: ast.expr, scope: Scope, depth: int = 0) -> Bounds:
        """Returns below which major version code runs where the test holds, and where it fails."""
        match test:
            case ast.UnaryOp(op=ast.Not()):
                return self.bounds(test.operand, scope, depth)[::-1]
            case ast.BoolOp():
                holds, fails = zip(*(self.bounds(value, scope, depth) for value in test.values), strict=True)
                return (min(holds), UNBOUND) if isinstance(test.op, ast.And) else (UNBOUND, min(fails))
            case ast.Compare(ops=[op], comparators=[right]):
                return self._of_comparison(test.left, type(op), right, scope)
            case ast.Call(func=ast.Name(id="hasattr"), args=[owner, asked]):
                return self._of_question(owner, asked, scope)
        values = self._names.values(test, scope) if depth < 4 else []
        return self.bounds(*values[0], depth + 1) if len(values) == 1 else (UNBOUND, UNBOUND)

    def _of_question(self, owner: ast.expr, asked: ast.expr, scope: Scope) -> Bounds:
        """Returns the bounds of whether TensorRT has a name."""
        if not (isinstance(asked, ast.Constant) and isinstance(asked.value, str)):
            return UNBOUND, UNBOUND
        path = next(iter(self._names.paths(owner, scope)), "")
        whole = f"{path}.{asked.value}".partition(".")[2]
        known = [REMOVED[whole]] if whole in REMOVED else MEMBERS.get(asked.value, {}).values()
        if known:
            return min(removed.major for removed in known), UNBOUND
        ours = any(item.partition(".")[0] == "tensorrt" for item in self._names.meanings(owner, scope))
        return UNBOUND, 0 if ours else UNBOUND  # asked for something newer

    def _of_comparison(self, left: ast.expr, op: type[ast.cmpop], right: ast.expr, scope: Scope) -> Bounds:
        if op in (ast.In, ast.NotIn):
            bounds = self._of_question(_owner_of_names(right), left, scope)
            return bounds if op is ast.In else bounds[::-1]
        if not self._is_version(left, scope):
            left, op, right = right, _MIRRORED.get(op, op), left
        version = _version(right)
        if version is None or not self._is_version(left, scope):
            return UNBOUND, UNBOUND
        exact = op in (ast.Lt, ast.GtE) and not any(version[1:])
        bound = version[0] if exact else version[0] + 1
        if op in (ast.Lt, ast.LtE, ast.Eq):
            return bound, UNBOUND
        return UNBOUND, bound if op in (ast.GtE, ast.Gt, ast.NotEq) else UNBOUND

    def _is_version(self, node: ast.expr, scope: Scope) -> bool:
        return self._names.any_part(node, scope, "version", self._tells_version)

    def _tells_version(self, part: ast.AST, scope: Scope) -> bool:
        """Returns whether it is `trt.__version__`, or `version("tensorrt")` of the package."""
        match part:
            case ast.Attribute(attr="__version__"):
                return "tensorrt" in self._names.meanings(part.value, scope)
            case ast.Call(args=[ast.Constant(value=str() as package), *_]):
                asked = (read_dotted(part.func) or "").rpartition(".")[2]
                return asked == "version" and package.startswith("tensorrt")
        return False


def _owner_of_names(names: ast.expr) -> ast.expr:
    """Returns X of `dir(X)`, `X.__members__` and `X.__dict__`."""
    match names:
        case ast.Call(args=[owner]) | ast.Attribute(value=owner, attr="__members__" | "__dict__"):
            return owner
    return names


def _version(node: ast.expr) -> list[int] | None:
    """Returns the numbers of a literal: 11, "11.0", (11, 0), Version("11.0")."""
    match node:
        case ast.Call(args=[inner]):
            return _version(inner)
        case ast.Tuple(elts=[_, *_] as items) | ast.List(elts=[_, *_] as items):
            numbers = [item.value for item in items if isinstance(item, ast.Constant)]
            whole = [number for number in numbers if isinstance(number, int)]
            return whole if len(whole) == len(items) else None
        case ast.Constant(value=int() as number) if not isinstance(number, bool):
            return [number]  # it may have more digits than Python writes
        case ast.Constant(value=str() | float() as value) if _NUMBERS.fullmatch(str(value)):
            return [int(number) for number in str(value).split(".")]
    return None
