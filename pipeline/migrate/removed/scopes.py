"""What the names of a script stand for, as far as its text tells.

Flow does not matter here: a name stands for everything that is bound to it in its scope. That is enough to
tell `trt.BuilderFlag` from another `BuilderFlag`, and a TensorRT builder from a class of the user's own.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

FOREIGN = "foreign"
"""The kind of an object that is known not to be TensorRT's."""

UNKNOWN = "unknown"
"""The kind of an object that may be anything."""

_TENSORRT = re.compile(r"tensorrt(_bindings|_lean|_dispatch)?(\.tensorrt)?(?=\.|$)")
_REQUIREMENT = re.compile(r"tensorrt(_bindings|_lean|_dispatch)?\b(?![-_.])")
_IMPORTERS = re.compile(r"import|require", re.IGNORECASE)
_TENSORRT_IMPORTERS = re.compile(r"(.*\.)?(lazy_)?import_(trt|tensorrt)")
_NETWORK = re.compile(r"network|^net$", re.IGNORECASE)
_CLASS_NAME = re.compile(r"_*[A-Z]\w*[a-z]")
_FACTORIES = {
    "create_builder_config": "IBuilderConfig",
    "create_network": "INetworkDefinition",
    "create_optimization_profile": "IOptimizationProfile",
    "build_engine": "ICudaEngine",
    "build_engine_with_config": "ICudaEngine",
    "deserialize_cuda_engine": "ICudaEngine",
    "create_execution_context": "IExecutionContext",
    "create_execution_context_without_device_memory": "IExecutionContext",
    "get_plugin_registry": "IPluginRegistry",
    "get_layer": "ILayer",
    "get_input": "ITensor",
    "get_output": "ITensor",
    "add_input": "ITensor",
    "add_convolution": "IConvolutionLayer",
    "add_convolution_nd": "IConvolutionLayer",
    "add_deconvolution": "IDeconvolutionLayer",
    "add_deconvolution_nd": "IDeconvolutionLayer",
    "add_padding": "IPaddingLayer",
    "add_padding_nd": "IPaddingLayer",
    "add_pooling": "IPoolingLayer",
    "add_pooling_nd": "IPoolingLayer",
}
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


@dataclass(frozen=True, slots=True)
class _Imported:
    path: str


@dataclass(frozen=True, slots=True)
class _Item:
    """One of what an expression yields."""

    of: ast.expr


_Bound = ast.expr | ast.ClassDef | _Imported | _Item | None  # None: anything


@dataclass(slots=True, eq=False)
class Scope:
    """A module, class or function, and what is bound in it: by name, or by dotted text as `self.config`."""

    node: ast.AST
    parent: Scope | None
    bound: dict[str, list[tuple[_Bound, Scope]]] = field(default_factory=lambda: defaultdict(list))

    def bindings(self, key: str) -> list[tuple[_Bound, Scope]]:
        """Returns what the name stands for, each with the scope that its expression stands in."""
        scope: Scope | None = self
        while scope is not None:
            hidden = (
                isinstance(scope.node, ast.ClassDef) and scope is not self and not key.startswith("self.")
            )
            if not hidden and key in scope.bound:
                return scope.bound[key]
            scope = scope.parent
        return []

    def nearest_class(self) -> Scope | None:
        """Returns the class that this is a method of, or None."""
        scope: Scope | None = self
        while scope is not None and not isinstance(scope.node, ast.ClassDef):
            scope = scope.parent
        return scope


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
        self._kinds: dict[tuple[ast.expr | str, Scope], frozenset[str]] = {}
        self._paths: dict[tuple[ast.expr | str, Scope], str | None] = {}
        self._collect(tree)

    def path(self, node: ast.expr, scope: Scope) -> str | None:
        """Returns the dotted path of what an expression names, with `tensorrt` for any of its packages.

        None for what is not imported.
        """
        key = (read_dotted(node) or node, scope)
        if key not in self._paths:
            self._paths[key] = None  # the answer to a name that is bound to itself
            self._paths[key] = self._path(node, scope)
        return self._paths[key]

    def kinds(self, node: ast.expr, scope: Scope) -> frozenset[str]:
        """Returns the classes of TensorRT that an object may be of, FOREIGN and UNKNOWN among them."""
        key = (read_dotted(node) or node, scope)
        if key not in self._kinds:
            self._kinds[key] = frozenset()
            self._kinds[key] = frozenset(self._kinds_of(node, scope)) or frozenset({UNKNOWN})
        return self._kinds[key]

    def values(self, node: ast.expr, scope: Scope) -> list[tuple[ast.expr, Scope]]:
        """Returns the expressions that are bound to a name; none where it may be anything else too."""
        key = read_dotted(node)
        found = scope.bindings(key) if key else []
        exprs = [(bound, where) for bound, where in found if isinstance(bound, ast.expr)]
        return exprs if len(exprs) == len(found) else []

    def _path(self, node: ast.expr, scope: Scope) -> str | None:
        if isinstance(node, ast.Call):
            return _imported_by_call(node)
        key = read_dotted(node)
        paths: list[str] = []
        for bound, where in scope.bindings(key) if key else ():
            if isinstance(bound, _Imported):
                paths.append(bound.path)
            elif isinstance(bound, ast.expr) and (found := self.path(bound, where)):
                paths.append(found)
        if paths:  # of TensorRT and a stand-in for it, TensorRT
            return next((path for path in paths if path.partition(".")[0] == "tensorrt"), paths[0])
        if isinstance(node, ast.Name) and self.star and not scope.bindings(node.id):
            return f"{self.star}.{node.id}"
        if isinstance(node, ast.Attribute) and (base := self.path(node.value, scope)):
            return canonicalize(f"{base}.{node.attr}")
        return None

    def _kinds_of(self, node: ast.expr, scope: Scope) -> Iterator[str]:
        if isinstance(node, ast.Call):
            yield self._made_by(node, scope)
        elif isinstance(node, (ast.Name, ast.Attribute)):
            bindings = scope.bindings(read_dotted(node) or "")
            path = self.path(node, scope)
            if path is not None and (path.startswith("tensorrt.") or not bindings):
                yield UNKNOWN if path.startswith("tensorrt.") else FOREIGN
                return
            for bound, where in bindings:
                if isinstance(bound, ast.expr):
                    yield from self.kinds(bound, where)
                elif isinstance(bound, _Item):
                    yield "ILayer" if "INetworkDefinition" in self.kinds(bound.of, where) else UNKNOWN
                else:
                    yield UNKNOWN if bound is None else FOREIGN
        elif isinstance(node, (ast.Subscript, ast.IfExp, ast.BoolOp, ast.NamedExpr, ast.Await)):
            yield UNKNOWN
        else:
            yield FOREIGN  # a literal, an operation, a comprehension

    def _made_by(self, call: ast.Call, scope: Scope) -> str:
        if path := self.path(call.func, scope):
            last = path.rpartition(".")[2]
            if path.startswith("tensorrt."):
                return _FACTORIES.get(last, last)
            return FOREIGN if _CLASS_NAME.match(last) else UNKNOWN
        if isinstance(call.func, ast.Attribute):
            owners = self.kinds(call.func.value, scope)
            if owners == {FOREIGN}:
                return UNKNOWN
            called = (read_dotted(call.func.value) or "").rpartition(".")[2]
            network = "INetworkDefinition" in owners or (UNKNOWN in owners and _NETWORK.search(called))
            a_layer = "ILayer" if network and call.func.attr.startswith("add_") else UNKNOWN
            return _FACTORIES.get(call.func.attr, a_layer)
        for bound, where in scope.bindings(call.func.id) if isinstance(call.func, ast.Name) else ():
            if isinstance(bound, ast.ClassDef):
                bases = [self.path(base, where) or "" for base in bound.bases]
                ours = [base.rpartition(".")[2] for base in bases if base.startswith("tensorrt.")]
                return ours[0] if ours else FOREIGN
        return UNKNOWN

    def _collect(self, tree: ast.Module) -> None:
        todo: list[tuple[ast.AST, Scope]] = []
        self.scopes[tree] = Scope(tree, None)
        todo.append((tree, self.scopes[tree]))
        while todo:
            node, outer = todo.pop()
            scope = self.scopes.get(node, outer)
            self._bind(node, scope)
            for child in ast.iter_child_nodes(node):
                if isinstance(child, (ast.ClassDef, *_FUNCTIONS)):
                    self.scopes[child] = Scope(child, scope)
                    if not isinstance(child, ast.Lambda):
                        self.defined.add(child.name)
                        scope.bound[child.name].append(
                            (child if isinstance(child, ast.ClassDef) else None, scope)
                        )
                todo.append((child, scope))

    def _bind(self, node: ast.AST, scope: Scope) -> None:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            self._bind_imports(node, scope)
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                self._target(target, node.value, scope)
        elif isinstance(node, ast.AnnAssign):
            self._target(node.target, _of_annotation(node.annotation) or node.value, scope)
        elif isinstance(node, (ast.AugAssign, ast.NamedExpr)):
            self._target(node.target, node.value if isinstance(node, ast.NamedExpr) else None, scope)
        elif isinstance(node, (ast.For, ast.AsyncFor, ast.comprehension)):
            self._target(node.target, _Item(node.iter), scope)
        elif isinstance(node, ast.withitem) and node.optional_vars is not None:
            self._target(node.optional_vars, node.context_expr, scope)
        elif isinstance(node, _FUNCTIONS):
            every = node.args
            for arg in (*every.posonlyargs, *every.args, *every.kwonlyargs, every.vararg, every.kwarg):
                if arg is not None:
                    scope.bound[arg.arg].append((_of_annotation(arg.annotation), scope))

    def _bind_imports(self, node: ast.Import | ast.ImportFrom, scope: Scope) -> None:
        module = "." * node.level + (node.module or "") if isinstance(node, ast.ImportFrom) else ""
        for alias in node.names:
            path = canonicalize(f"{module}.{alias.name}" if module else alias.name)
            if alias.name == "*":
                self.imports.add(canonicalize(module))
                if canonicalize(module) in ("tensorrt", "polygraphy.backend.trt"):
                    self.star = canonicalize(module)
                continue
            self.imports.add(canonicalize(module) if module else path)
            if module or alias.asname:
                scope.bound[alias.asname or alias.name].append((_Imported(path), scope))
            else:
                top = alias.name.partition(".")[0]
                scope.bound[top].append((_Imported(canonicalize(top)), scope))

    def _target(self, target: ast.expr, value: _Bound, scope: Scope) -> None:
        if isinstance(target, (ast.Tuple, ast.List)):
            values: list[_Bound] = [None] * len(target.elts)
            if isinstance(value, (ast.Tuple, ast.List)) and len(value.elts) == len(values):
                values = list(value.elts)
            for element, its in zip(target.elts, values, strict=True):
                self._target(element, its, scope)
            return
        if isinstance(value, ast.expr) and (module := _imported_by_call(value)):
            self.imports.add(module)
        key = read_dotted(target)
        if key is None:
            return
        owner = scope.nearest_class() if key.startswith("self.") else scope
        if key.startswith("self."):
            self.defined.add(key[5:])
        (owner or scope).bound[key].append((value, scope))


def read_dotted(node: ast.expr) -> str | None:
    """Returns `a.b.c` of a name or a chain of attributes, None of anything else."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else None


def canonicalize(path: str) -> str:
    """Returns the path with `tensorrt` for any package of the full TensorRT."""
    return _TENSORRT.sub("tensorrt", path, count=1) if _TENSORRT.match(path) else path


def _imported_by_call(node: ast.expr) -> str | None:
    """Returns "tensorrt" for `importlib.import_module("tensorrt")` and its likes, else None."""
    called = read_dotted(node.func) if isinstance(node, ast.Call) else None
    if called is None or not isinstance(node, ast.Call):
        return None
    named = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else ""
    found = isinstance(named, str) and _IMPORTERS.search(called) and _REQUIREMENT.match(named)
    return "tensorrt" if found or _TENSORRT_IMPORTERS.fullmatch(called) else None


def _of_annotation(annotation: ast.expr | None) -> ast.expr | None:
    """Returns a call of the annotated class, which makes an object of it."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        try:
            annotation = ast.parse(annotation.value, mode="eval").body
        except SyntaxError:
            return None
    if annotation is None or read_dotted(annotation) is None:
        return None
    return ast.Call(func=annotation, args=[], keywords=[])
