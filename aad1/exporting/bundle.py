"""One file that runs without this package, made of its sources: what a class needs, and nothing else.

The definitions that a root reaches are taken over as they are written, module by module in the order of their
imports; what they import from elsewhere stands at the top. So an exported pipeline is this package's code, not a copy
that somebody keeps in step, and needs none of the packages that only other parts need.
"""

from __future__ import annotations

import ast
import builtins
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

PACKAGE = "aad1"
HEADER = """# Copyright the authors of {package}.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
# Distributed on an "AS IS" basis, without warranties or conditions of any kind, either express or implied.
#
# Written by `aad1 export` from the sources of {package} {version}: change them, not this file.

"""


@dataclass(frozen=True)
class Definition:
    """A statement of a module's top level: its lines with the comment above them, what it defines and mentions."""

    module: str
    line: int
    text: str
    defines: tuple[str, ...]
    mentions: frozenset[str]


@dataclass(frozen=True)
class Origin:
    """What an imported name is: ``name`` of ``module``, or the module itself where ``name`` is empty."""

    module: str
    name: str = ""

    @property
    def ours(self) -> bool:
        """Whether it is this package's."""
        return self.module.split(".")[0] == PACKAGE


class Source:
    """The top level of one of the package's modules."""

    def __init__(self, module: str) -> None:
        self.module = module
        found = importlib.util.find_spec(module)
        assert found is not None
        assert found.origin is not None
        self.text = Path(found.origin).read_text(encoding="utf-8")
        self._lines = self.text.splitlines()
        self._tree = ast.parse(self.text)

    @cached_property
    def imported(self) -> dict[str, Origin]:
        """Imported names and what they are."""
        found: dict[str, Origin] = {}
        for node in self._tree.body:
            if isinstance(node, ast.ImportFrom):
                assert node.module
                assert node.level == 0, f"{self.module}:{node.lineno}: a bundle's sources import by full names"
                found |= {alias.asname or alias.name: Origin(node.module, alias.name) for alias in node.names}
            elif isinstance(node, ast.Import):
                found |= {a.asname or a.name.split(".")[0]: Origin(a.name) for a in node.names}
        return found

    @cached_property
    def defined(self) -> dict[str, Definition]:
        """Names that the module defines itself."""
        statements = [node for node in self._tree.body if not isinstance(node, ast.Import | ast.ImportFrom)]
        return {name: found for node in statements for found in [self._definition(node)] for name in found.defines}

    def _definition(self, node: ast.stmt) -> Definition:
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        while first > 1 and self._lines[first - 2].startswith("#"):
            first -= 1
        text = "\n".join(self._lines[first - 1 : node.end_lineno])
        return Definition(self.module, first, text, tuple(_defines(node)), frozenset(_mentions(node)))


@dataclass
class Bundle:
    """What ``roots`` (name of a module and of a definition in it) need, collected."""

    roots: tuple[tuple[str, str], ...]
    definitions: dict[str, Definition] = field(default_factory=dict)
    imports: dict[str, Origin] = field(default_factory=dict)
    _sources: dict[str, Source] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for module, name in self.roots:
            self._take(self._source(module), name)

    def render(self, docstring: str) -> str:
        """The whole file."""
        parts = [
            HEADER.format(package=PACKAGE, version=version(PACKAGE)) + f'"""{docstring}"""',
            "from __future__ import annotations\n\n" + "\n".join(self._import_lines()),
        ]
        for module in self._order():
            own = {d.line: d.text for d in self.definitions.values() if d.module == module}
            if own:
                parts.append("\n\n\n".join([f"# --- {module} ---", *(own[line] for line in sorted(own))]))
        return "\n\n\n".join(parts) + "\n"

    def _source(self, module: str) -> Source:
        if module not in self._sources:
            self._sources[module] = Source(module)
        return self._sources[module]

    def _take(self, source: Source, name: str) -> None:
        """Take the definition or the import that ``name`` is in ``source``, if it is one, and all that it mentions."""
        if name in source.defined:
            definition = source.defined[name]
            if not self._claim(name, definition):
                return
            for other in sorted(definition.mentions | set(definition.defines)):
                self._take(source, other)
        elif name in source.imported:
            origin = source.imported[name]
            if origin.ours:
                assert origin.name == name, f"{source.module} renames {origin.name}: a bundle has one name for a thing"
                self._take(self._source(origin.module), name)
            elif origin.module != "__future__":
                self._claim(name, origin)

    def _claim(self, name: str, what: Definition | Origin) -> bool:
        """Note what a name stands for; False when that is known. A name cannot stand for two things."""
        held = self.definitions.get(name) or self.imports.get(name)
        assert held in (None, what), f"'{name}' would be {what} and {held}: rename one of them"
        assert not hasattr(builtins, name), f"'{name}' of {what.module} would hide Python's from the other modules"
        if isinstance(what, Definition):
            self.definitions[name] = what
        else:
            self.imports[name] = what
        return held is None

    def _order(self) -> list[str]:
        """Modules after those that they import."""
        ordered: list[str] = []

        def visit(module: str) -> None:
            if module not in ordered and module in self._sources:
                for needed in dict.fromkeys(o.module for o in self._source(module).imported.values() if o.ours):
                    visit(needed)
                ordered.append(module)

        for module, _ in self.roots:
            visit(module)
        return ordered

    def _import_lines(self) -> Iterator[str]:
        whole = {n: o.module for n, o in self.imports.items() if not o.name}
        yield from sorted(
            f"import {module}" if name == module.split(".")[0] else f"import {module} as {name}"
            for name, module in whole.items()
        )
        for module in sorted({o.module for o in self.imports.values() if o.name}):
            names = [(o.name, name) for name, o in self.imports.items() if o.name and o.module == module]
            listed = ", ".join(own if own == name else f"{own} as {name}" for own, name in sorted(names))
            yield f"from {module} import {listed}"


def bundle(module: str, name: str, docstring: str) -> str:
    """A file that defines ``name`` of the package's ``module``, without the package."""
    return Bundle(((module, name),)).render(docstring)


def _defines(node: ast.stmt) -> Iterator[str]:
    """Names that a statement of the top level binds; a docstring binds none."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        yield from (n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name))


def _mentions(node: ast.stmt) -> Iterator[str]:
    """Every name in a statement, in annotations too; local names among them are harmless."""
    for inner in ast.walk(node):
        assert not (isinstance(inner, ast.ImportFrom) and (inner.module or "").split(".")[0] == PACKAGE), (
            f"line {inner.lineno}: imports the package inside a function"
        )
        if isinstance(inner, ast.Name):
            yield inner.id
