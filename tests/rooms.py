"""Which modules of a package import which."""

from __future__ import annotations

import ast
from pathlib import Path
from types import ModuleType


def imports(package: ModuleType) -> set[tuple[str, str]]:
    """Pairs of module names, the importing one first."""
    assert package.__file__ is not None
    root, found = Path(package.__file__).parent, set()
    for path in root.rglob("*.py"):
        module = ".".join(path.relative_to(root.parent).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{package.__name__}."):
                found.add((module, str(node.module)))
    return found


def circle(pairs: set[tuple[str, str]]) -> set[str]:
    """Modules that import each other in a circle, and those that import them; empty where there is none."""
    left: dict[str, set[str]] = {}
    for module, imported in pairs:
        left.setdefault(module, set()).add(imported)
    while free := [module for module, needs in left.items() if not needs & left.keys()]:
        for module in free:
            del left[module]
    return set(left)
