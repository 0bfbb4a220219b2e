"""What the names of a script stand for, as far as its text says.

Flow does not matter here: a name stands for everything that is bound to it in its scope. That is enough to
tell `trt.BuilderFlag` from another `BuilderFlag`, and a TensorRT builder from a class of the user's own.

What an expression stands for is a set of texts: the dotted path of what is imported, with `tensorrt` for any
of its packages ("tensorrt.BuilderFlag", "numpy"); "tensorrt.Builder()" for an object of that class; FOREIGN
for an object that is known not to be TensorRT's; UNKNOWN for what may be anything.
"""

from __future__ import annotations

import ast
import re
from collections import ChainMap
from collections.abc import Callable, Iterator

FOREIGN = "foreign()"
UNKNOWN = "unknown()"
NETWORK = "tensorrt.INetworkDefinition()"
POLYGRAPHY = "polygraphy.backend.trt"

_TENSORRT = re.compile(r"tensorrt(_bindings|_lean|_dispatch)?(\.tensorrt)?(?=\.|$)")
_REQUIREMENT = re.compile(r"tensorrt(_bindings|_lean|_dispatch)?\b(?![-_.])")
_IMPORTERS = re.compile(r"import|require", re.IGNORECASE)
_TENSORRT_IMPORTERS = re.compile(r"(.*\.)?(lazy_)?import_(trt|tensorrt)")
_CALLED_NETWORK = re.compile(r"network|^net$", re.IGNORECASE)
_CLASS_NAME = re.compile(r"_*[A-Z]\w*[a-z]")
_MAKERS = {
    "IBuilderConfig": "create_builder_config",
    "INetworkDefinition": "create_network",
    "IOptimizationProfile": "create_optimization_profile",
    "ICudaEngine": "build_engine build_engine_with_config deserialize_cuda_engine",
    "IExecutionContext": "create_execution_context create_execution_context_without_device_memory",
    "IPluginRegistry": "get_plugin_registry",
    "ILayer": "get_layer",
    "ITensor": "get_input get_output add_input",
    "IConvolutionLayer": "add_convolution add_convolution_nd",
    "IDeconvolutionLayer": "add_deconvolution add_deconvolution_nd",
    "IPaddingLayer": "add_padding add_padding_nd",
    "IPoolingLayer": "add_pooling add_pooling_nd",
}
_FACTORIES = {name: kind for kind, names in _MAKERS.items() for name in names.split()}

_Bound = ast.expr | ast.ClassDef | str | None
"""What is bound to a name: a text is the path of an import, `*x` one of what x yields, None anything."""

Scope = ChainMap[str, list["_Binding"]]
"""What is bound in a module, class or function and around it: by name, or by dotted text as `self.config`."""

_Binding = tuple[_Bound, Scope]
"""What is bound, with the scope that its expression stands in."""


class Names:
    """Resolves the names of one script.

    Attributes:
        scopes: The scope that each module, class, function and lambda opens.
        imports: The modules that are imported, anywhere.
        star: The module of `from module import *`, where it is TensorRT's or Polygraphy's.
        defined: The names of functions and classes, and of what is set on `self`.
    """

    def __init__(self, tree: ast.Module) -> None:
        self.scopes: dict[ast.AST, Scope] = {}
        self.imports: set[str] = set()
        self.star: str | None = None
        self.defined: set[str] = set()
        self._meanings: dict[tuple[ast.expr | str, int], frozenset[str]] = {}
        self._without: set[tuple[str, str, int]] = set()
        self._collect(tree)

    def meanings(self, node: ast.expr, scope: Scope) -> frozenset[str]:
        """Returns all that an expression may stand for."""
        key = (read_dotted(node) or node, id(scope))
        if key not in self._meanings:
            self._meanings[key] = frozenset()  # the answer to a name that is bound to itself
            self._meanings[key] = frozenset(self._resolve(node, scope)) or frozenset({UNKNOWN})
        return self._meanings[key]

    def paths(self, node: ast.expr, scope: Scope) -> list[str]:
        """Returns the paths of the imports among the meanings of an expression, TensorRT's first."""
        paths = [meaning for meaning in self.meanings(node, scope) if not meaning.endswith("()")]
        return sorted(paths, key=lambda path: (path.partition(".")[0] != "tensorrt", path))

    def values(self, node: ast.AST, scope: Scope) -> list[tuple[ast.expr, Scope]]:
        """Returns the expressions that are bound to a name."""
        bindings = scope.get(read_dotted(node) or "", [])
        return [(bound, where) for bound, where in bindings if isinstance(bound, ast.expr)]

    def any_part(
        self, node: ast.AST, scope: Scope, name: str, test: Callable[[ast.AST, Scope], bool]
    ) -> bool:
        """Returns whether a test holds for a part of an expression, or of what is bound to its names."""
        todo, seen = [(node, scope)], set[tuple[str, str, int]]()
        while todo:
            expression, where = todo.pop()
            for part in ast.walk(expression):
                if test(part, where):
                    return True
                key = (name, read_dotted(part) or "", id(where))
                if key[1] and key not in seen and key not in self._without:
                    seen.add(key)
                    todo += self.values(part, where)
        self._without |= seen
        return False

    def _resolve(self, node: ast.expr, scope: Scope) -> Iterator[str]:
        if isinstance(node, ast.Call):
            yield from self._results(node, scope)
        elif isinstance(node, (ast.Name, ast.Attribute)):
            bindings = scope.get(read_dotted(node) or "", [])
            for bound, where in bindings:
                yield from self._of_binding(bound, where)
            if not bindings and isinstance(node, ast.Name) and self.star:
                yield f"{self.star}.{node.id}"
            elif not bindings and isinstance(node, ast.Attribute):
                yield from (canonicalize(f"{path}.{node.attr}") for path in self.paths(node.value, scope))
        elif isinstance(node, ast.Starred):
            network = NETWORK in self.meanings(node.value, scope)
            yield "tensorrt.ILayer()" if network else UNKNOWN
        elif not isinstance(node, (ast.Subscript, ast.IfExp, ast.BoolOp, ast.NamedExpr, ast.Await)):
            yield FOREIGN  # a literal, an operation, a comprehension

    def _of_binding(self, bound: _Bound, where: Scope) -> Iterator[str]:
        if isinstance(bound, str):
            yield bound
        elif isinstance(bound, ast.expr):
            yield from self.meanings(bound, where)
        elif isinstance(bound, ast.ClassDef):  # a class that extends one of TensorRT's stands for it
            bases = [path for base in bound.bases for path in self.paths(base, where)]
            yield next((base for base in bases if base.startswith("tensorrt.")), FOREIGN)
        else:
            yield UNKNOWN

    def _results(self, call: ast.Call, scope: Scope) -> Iterator[str]:
        """Yields what a call returns."""
        if _imports_tensorrt(call):
            yield "tensorrt"
        elif paths := self.paths(call.func, scope):
            for path in paths:
                name = path.rpartition(".")[2]
                if path.startswith("tensorrt."):
                    yield f"tensorrt.{_FACTORIES.get(name, name)}()"
                else:
                    yield FOREIGN if _CLASS_NAME.match(name) else UNKNOWN
        elif isinstance(call.func, ast.Attribute):
            yield self._result_of_method(call.func, scope)
        else:
            yield from self.meanings(call.func, scope) & {FOREIGN}

    def _result_of_method(self, method: ast.Attribute, scope: Scope) -> str:
        owners = self.meanings(method.value, scope)
        if owners != {FOREIGN} and method.attr in _FACTORIES:
            return f"tensorrt.{_FACTORIES[method.attr]}()"
        named = UNKNOWN in owners and _CALLED_NETWORK.search(
            (read_dotted(method.value) or "").rpartition(".")[2]
        )
        network = named or NETWORK in owners
        return "tensorrt.ILayer()" if network and method.attr.startswith("add_") else UNKNOWN

    def _collect(self, tree: ast.Module) -> None:
        self.scopes[tree] = ChainMap()
        todo: list[tuple[ast.AST, Scope]] = [(tree, self.scopes[tree])]
        while todo:
            node, outer = todo.pop()
            scope = self.scopes.get(node, outer)
            self._bind(node, scope)
            for child in ast.iter_child_nodes(node):
                if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                    self.scopes[child] = scope.new_child()
                    if not isinstance(child, ast.Lambda):
                        self.defined.add(child.name)
                        self._bind_name(child.name, child if isinstance(child, ast.ClassDef) else None, scope)
                todo.append((child, scope))

    def _bind(self, node: ast.AST, scope: Scope) -> None:
        match node:
            case ast.Import() | ast.ImportFrom():
                self._bind_imports(node, scope)
            case ast.Assign():
                for target in node.targets:
                    self._bind_target(target, node.value, scope)
            case ast.AnnAssign():
                self._bind_target(node.target, _object_of(node.annotation), scope)
                self._bind_target(node.target, node.value, scope)
            case ast.AugAssign() | ast.NamedExpr():
                self._bind_target(node.target, node.value, scope)
            case ast.For() | ast.AsyncFor() | ast.comprehension():
                self._bind_target(node.target, ast.Starred(node.iter), scope)
            case ast.withitem(optional_vars=ast.expr() as target):
                self._bind_target(target, node.context_expr, scope)
            case ast.arg():
                self._bind_name(node.arg, _object_of(node.annotation), scope)

    def _bind_imports(self, node: ast.Import | ast.ImportFrom, scope: Scope) -> None:
        module = "." * node.level + (node.module or "") if isinstance(node, ast.ImportFrom) else ""
        for alias in node.names:
            path = canonicalize(f"{module}.{alias.name}" if module else alias.name)
            self.imports.add(canonicalize(module) if module else path)
            if alias.name == "*":
                self.star = next(
                    (name for name in ("tensorrt", POLYGRAPHY) if canonicalize(module) == name), self.star
                )
            elif module or alias.asname:
                self._bind_name(alias.asname or alias.name, path, scope)
            else:
                top = alias.name.partition(".")[0]
                self._bind_name(top, canonicalize(top), scope)

    def _bind_target(self, target: ast.expr, value: _Bound, scope: Scope) -> None:
        if isinstance(target, (ast.Tuple, ast.List)):
            values: list[_Bound] = [None] * len(target.elts)
            if isinstance(value, (ast.Tuple, ast.List)) and len(value.elts) == len(values):
                values = list(value.elts)
            for element, its in zip(target.elts, values, strict=True):
                self._bind_target(element, its, scope)
        elif name := read_dotted(target):
            if isinstance(value, ast.Call) and _imports_tensorrt(value):
                self.imports.add("tensorrt")
            self._bind_name(name, value, scope)

    def _bind_name(self, name: str, value: _Bound, scope: Scope) -> None:
        """Binds a name; an attribute of `self` in the class around the method."""
        of_class = name.startswith("self.")
        if of_class:
            self.defined.add(name[5:])
        bound = scope.maps[1 if of_class and len(scope.maps) > 1 else 0]
        bound.setdefault(name, []).append((value, scope))


def read_dotted(node: ast.AST) -> str | None:
    """Returns `a.b.c` of a name or a chain of attributes, None of anything else."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else None


def canonicalize(path: str) -> str:
    """Returns the path with `tensorrt` for any package of the full TensorRT."""
    return _TENSORRT.sub("tensorrt", path, count=1) if _TENSORRT.match(path) else path


def _imports_tensorrt(call: ast.Call) -> bool:
    """Returns whether it is `importlib.import_module("tensorrt")` or one of its likes."""
    called = read_dotted(call.func) or ""
    named = call.args[0].value if call.args and isinstance(call.args[0], ast.Constant) else ""
    by_name = _IMPORTERS.search(called) and isinstance(named, str) and _REQUIREMENT.match(named)
    return bool(by_name or _TENSORRT_IMPORTERS.fullmatch(called))


def _object_of(annotation: ast.expr | None) -> ast.expr | None:
    """Returns a call of the annotated class, which makes an object of it."""
    if annotation is None or read_dotted(annotation) is None:
        return None
    return ast.Call(func=annotation, args=[], keywords=[])
