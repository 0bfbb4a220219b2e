"""What the tests of a script say about the version of TensorRT that its branches run on."""

from __future__ import annotations

import ast
import re

from trtq.pipeline.migrate.removed.names import MEMBERS, NAMES
from trtq.pipeline.migrate.removed.scopes import FOREIGN, UNKNOWN, Names, Scope, read_dotted

Bounds = tuple[int | None, int | None]
"""Below which major version code runs where a test holds, and where it does not; None: no bound."""

_ANY_VERSION = 0


class VersionTests:
    """Reads what a test says about the version of TensorRT."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._versions: dict[tuple[str, Scope], bool] = {}

    def bounds(self, test: ast.expr, scope: Scope, depth: int = 0) -> Bounds:
        """Returns below which major version code runs where the test holds, and where it does not."""
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            holds, fails = self.bounds(test.operand, scope, depth)
            return fails, holds
        if isinstance(test, ast.BoolOp):
            each = [self.bounds(value, scope, depth) for value in test.values]
            side = 0 if isinstance(test.op, ast.And) else 1
            bound = min((its for item in each if (its := item[side]) is not None), default=None)
            return (bound, None) if side == 0 else (None, bound)
        if isinstance(test, ast.Compare) and len(test.ops) == 1:
            return self._of_comparison(test, scope)
        if isinstance(test, ast.Call) and read_dotted(test.func) == "hasattr" and len(test.args) == 2:
            return self._of_question(test.args[0], test.args[1], scope)
        values = self._names.values(test, scope) if depth < 4 else []
        return self.bounds(*values[0], depth + 1) if len(values) == 1 else (None, None)

    def _of_question(self, owner: ast.expr, asked: ast.expr, scope: Scope) -> Bounds:
        if not (isinstance(asked, ast.Constant) and isinstance(asked.value, str)):
            return None, None
        path = self._names.path(owner, scope) or ""
        inner = path.partition(".")[2]
        full = f"{inner}.{asked.value}" if inner else asked.value
        known = [NAMES[full]] if full in NAMES else [removed for _, removed in MEMBERS.get(asked.value, ())]
        if known:
            return min(int(removed.since.partition(".")[0]) for removed in known), None
        ours = path.partition(".")[0] == "tensorrt" or self._names.kinds(owner, scope) - {FOREIGN, UNKNOWN}
        return None, (_ANY_VERSION if ours else None)  # asked for something newer

    def _of_comparison(self, test: ast.Compare, scope: Scope) -> Bounds:
        left, right, op = test.left, test.comparators[0], type(test.ops[0])
        if op in (ast.In, ast.NotIn):
            holds, fails = self._of_question(_asked_of(right), left, scope)
            return (holds, fails) if op is ast.In else (fails, holds)
        if not self._is_version(left, scope):
            left, right = right, left
            op = {ast.Lt: ast.Gt, ast.Gt: ast.Lt, ast.LtE: ast.GtE, ast.GtE: ast.LtE}.get(op, op)
        version = _version(right)
        if version is None or not self._is_version(left, scope):
            return None, None
        upto = version[0] + 1
        below = version[0] if not any(version[1:]) else upto
        table: dict[type[ast.cmpop], Bounds] = {
            ast.Lt: (below, None),
            ast.GtE: (None, below),
            ast.LtE: (upto, None),
            ast.Gt: (None, upto),
            ast.Eq: (upto, None),
            ast.NotEq: (None, upto),
        }
        return table.get(op, (None, None))

    def _is_version(self, node: ast.expr, scope: Scope) -> bool:
        """Returns whether the expression is made of `trt.__version__` or of the package's version."""
        for part in ast.walk(node):
            if isinstance(part, ast.Attribute) and part.attr == "__version__":
                if self._names.path(part.value, scope) == "tensorrt":
                    return True
            elif isinstance(part, ast.Call) and part.args and isinstance(part.args[0], ast.Constant):
                asked = (read_dotted(part.func) or "").rpartition(".")[2]
                if asked == "version" and str(part.args[0].value).startswith("tensorrt"):
                    return True
            elif isinstance(part, (ast.Name, ast.Attribute)) and self._is_named_version(part, scope):
                return True
        return False

    def _is_named_version(self, node: ast.expr, scope: Scope) -> bool:
        key = (read_dotted(node) or "", scope)
        if key not in self._versions:
            self._versions[key] = False  # the answer to a name that is made of itself
            values = self._names.values(node, scope)
            self._versions[key] = any(self._is_version(value, where) for value, where in values)
        return self._versions[key]


def _asked_of(names: ast.expr) -> ast.expr:
    """Returns X of `dir(X)`, `X.__members__` and `X.__members__.keys()`."""
    if isinstance(names, ast.Call):
        return names.args[0] if names.args else _asked_of(names.func)
    if isinstance(names, ast.Attribute) and names.attr in ("__members__", "__dict__", "keys"):
        return _asked_of(names.value)
    return names


def _version(node: ast.expr) -> list[int] | None:
    """Returns the numbers of a literal: 11, "11.0", (11, 0), Version("11.0")."""
    if isinstance(node, ast.Call) and len(node.args) == 1:
        return _version(node.args[0])
    if isinstance(node, (ast.Tuple, ast.List)) and node.elts:
        values = [item.value if isinstance(item, ast.Constant) else None for item in node.elts]
        numbers = [value for value in values if isinstance(value, int)]
        return numbers if len(numbers) == len(values) else None
    if isinstance(node, ast.Constant) and re.fullmatch(r"\d+(\.\d+)*", str(node.value)):
        return [int(number) for number in str(node.value).split(".")]
    return None
