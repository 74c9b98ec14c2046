"""The import rules: strictly down, one reader of the environment, one importer by name."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "diced"

# A module may import what has a smaller number. A folder stands for all it holds; its files may
# import each other. A new module needs a row: decide what it may know.
LEVELS: dict[str, float] = {
    "errors": 0.0,
    "_encoder": 0.05,  # kernels that other kernels call
    "_strides": 0.05,
    "library": 0.05,
    "_crc32c": 0.05,
    "_frame": 0.06,
    "_voxels": 0.06,
    "_compress": 0.07,
    "_codec": 0.07,
    "_packed": 0.08,
    "_segmentation": 0.08,
    "_blockdecode": 0.09,
    "_blockwrite": 0.09,
    "_*": 0.1,  # all other kernels
    "extras": 0.2,
    "forks": 0.2,
    "jsontext": 0.2,
    "registry": 0.5,
    "coders": 0.9,
    "codec": 1.0,
    "dag": 1.0,
    "downsample": 1.0,
    "grid": 1.0,
    "keys": 1.0,
    "names": 1.0,
    "pool": 1.0,
    "protobuf": 1.0,
    "spans": 1.0,
    "spec": 1.5,
    "elements": 2.0,
    "engine": 2.0,
    "tidy": 2.5,
    "cache": 2.9,
    "columns": 2.9,
    "page": 3.0,
    "segment": 3.0,
    "blockcache": 3.1,
    "index": 3.1,
    "log": 3.1,
    "home": 3.5,
    "state": 3.9,
    "storefile": 3.9,
    "moment": 3.9,
    "compose": 3.93,
    "proposal": 3.93,
    "inbox": 3.94,
    "combine": 3.95,
    "commit": 3.95,
    "versioned": 4.0,
    "blocks": 4.5,
    "meta": 4.5,
    "values": 4.5,
    "encoding": 4.52,
    "pending": 4.55,
    "pyramid": 4.6,
    "levels": 4.7,
    "history": 4.6,
    "actor": 2.5,
    "attrs": 4.9,
    "described": 4.9,
    "planes": 4.96,
    "handle": 4.95,
    "daskio": 4.96,
    "pieces": 4.96,
    "scaled": 4.97,
    "session": 4.97,
    "snapshot": 4.97,
    "array": 5.0,
    "files": 5.0,
    "graph": 5.05,
    "kinds": 5.05,
    "roi": 5.05,
    "tilemaker": 4.9,
    "tiles": 5.05,
    "repo": 5.1,
    "sweep": 5.15,
    "catalog": 5.15,
    "store": 5.2,
    "__init__": 5.3,
    "report": 5.5,
    "walk": 5.5,
    "kindcheck": 5.55,
    "scope": 5.55,
    "levelcheck": 5.55,
    "lanecheck": 5.6,
    "demo": 6.0,
    "export": 6.0,
    "fsck": 6.0,
    "ingest": 6.0,
    "labels": 6.0,
    "multiscale": 6.0,
    "usage": 6.0,
    "rebuild": 6.1,
    "remote": 7.0,
    "dvidcloud": 7.1,
    "pydvid": 7.1,
    "server": 7.0,
    "sync": 7.0,
    "cli": 8.0,
    "__main__": 9.0,
}

FOLDERS = {
    "cli", "demo", "engine", "export", "ingest", "labels", "pydvid", "remote", "server",
}  # fmt: skip


class Import(NamedTuple):
    """One import of a module: `line` of the file, `inner` if not at module level."""

    module: str
    line: int
    inner: bool


def module_name(path: Path, package: Path = PACKAGE) -> str:
    """Return the dotted name of a source file, ``diced`` first."""
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def unit(module: str) -> str:
    """Return the row of `LEVELS` a module of diced belongs to.

    >>> unit("diced.engine.local"), unit("diced._blocks"), unit("diced._strides"), unit("diced")
    ('engine', '_*', '_strides', '__init__')
    """
    _, _, rest = module.partition(".")
    first = rest.split(".")[0] or "__init__"
    if first.startswith("_") and not first.startswith("__") and first not in LEVELS:
        return "_*"
    return first


def resolve(base: str, names: list[str], known: set[str]) -> list[str]:
    """Return what ``from base import names`` imports: a submodule if there is one, else `base`."""
    return [
        f"{base}.{name}"
        if f"{base}.{name}" in known or (base == "diced" and unit(f"diced.{name}") in LEVELS)
        else base
        for name in names
    ]


def absolute(path: Path, module: str, level: int, target: str) -> str:
    """Return the absolute form of a relative import's target."""
    if level == 0:
        return target
    parts = module.split(".")
    keep = len(parts) - level + (path.stem == "__init__")
    return ".".join(parts[:keep] + ([target] if target else []))


def imports_of_python(path: Path, text: str, module: str, known: set[str]) -> Iterator[Import]:
    """Yield every import of a .py file that can run, also in functions.

    What stands under ``if TYPE_CHECKING:`` never runs: a type may be named upward.
    """
    tree = ast.parse(text)
    unrun = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for statement in node.body
        for child in ast.walk(statement)
    }
    inner = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in unrun:
            continue
        found: list[str] = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = absolute(path, module, node.level, node.module or "")
            found = resolve(base, [alias.name for alias in node.names], known)
        for name in found:
            yield Import(name, node.lineno, id(node) in inner)


CYTHON_FROM = re.compile(r"^\s*from\s+([.\w]+)\s+c?import\s+\(?\s*([^#]+)")
CYTHON_IMPORT = re.compile(r"^\s*c?import\s+([^#]+)")


def imports_of_cython(path: Path, text: str, module: str, known: set[str]) -> Iterator[Import]:
    """Yield every import and cimport line of a .pyx or .pxd file."""
    for line, source in enumerate(text.splitlines(), 1):
        if match := CYTHON_FROM.match(source):
            dotted = match[1]
            level = len(dotted) - len(dotted.lstrip("."))
            base = absolute(path, module, level, dotted.lstrip("."))
            names = [name.split()[0] for name in match[2].strip("() \\").split(",") if name.strip()]
            found = resolve(base, names, known)
        elif match := CYTHON_IMPORT.match(source):
            found = [name.split()[0] for name in match[1].split(",") if name.strip()]
        else:
            continue
        for name in found:
            yield Import(name, line, source[:1].isspace())


def imports_of(path: Path, known: set[str], package: Path = PACKAGE) -> list[Import]:
    """Return every import a source file makes."""
    read = imports_of_python if path.suffix == ".py" else imports_of_cython
    text = path.read_text(encoding="utf-8")
    return list(read(path, text, module_name(path, package), known))


def sources(package: Path = PACKAGE) -> list[Path]:
    """Return the files that can import: Python, Cython and its declarations."""
    return sorted(path for form in ("*.py", "*.pyx", "*.pxd") for path in package.rglob(form))


def upward(package: Path = PACKAGE) -> list[str]:
    """Return a line for every import that does not point strictly down."""
    paths = sources(package)
    known = {module_name(path, package) for path in paths}
    wrong = []
    for path in paths:
        module = module_name(path, package)
        mine = unit(module)
        for target, line, _ in imports_of(path, known, package):
            if target.split(".")[0] != "diced":
                continue
            its = unit(target)
            if target == module or (mine == its and mine in FOLDERS):
                continue
            if its not in LEVELS:
                wrong.append(f"{path.name}:{line}: {module} imports {target}, which has no level")
            elif mine in LEVELS and LEVELS[its] >= LEVELS[mine]:
                wrong.append(
                    f"{path.relative_to(package)}:{line}: {module} (level {LEVELS[mine]:g}) "
                    f"imports {target} (level {LEVELS[its]:g})"
                )
    return wrong


def unplaced(package: Path = PACKAGE) -> list[str]:
    """Return a line for every module without a row in `LEVELS`."""
    return [
        f"{path.relative_to(package)}: {unit(module_name(path, package))!r} has no level in "
        f"{Path(__file__).name}; add a row that says what it may import"
        for path in sources(package)
        if unit(module_name(path, package)) not in LEVELS
    ]


def test_every_module_has_a_level() -> None:
    assert not unplaced(), "\n".join(unplaced())


def test_imports_point_strictly_down() -> None:
    assert len(sources()) > 10, f"no source found under {PACKAGE}"
    assert not upward(), "\n".join(upward())


def test_own_modules_are_imported_at_the_top() -> None:
    """An import in a function hides a cycle. Commands are excepted: each loads only its own."""
    paths = sources()
    known = {module_name(path) for path in paths}
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line}: imports {target} in a function"
        for path in paths
        if unit(module_name(path)) != "cli"
        for target, line, inner in imports_of(path, known)
        if inner and target.split(".")[0] == "diced"
    ]
    assert not wrong, "\n".join(wrong)


ENVIRONMENT = {
    "os": {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"},
    "sys": {"argv", "orig_argv"},
}


def environment_readers(text: str) -> Iterator[str]:
    """Yield what a Python file uses of the environment and the arguments."""
    tree = ast.parse(text)
    alias = {
        name.asname or name.name: name.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for name in node.names
        if name.name in ENVIRONMENT
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = alias.get(node.value.id)
            if owner and node.attr in ENVIRONMENT[owner]:
                yield f"{node.lineno}: {owner}.{node.attr}"
        elif isinstance(node, ast.ImportFrom) and node.module in ENVIRONMENT:
            for name in node.names:
                if name.name in ENVIRONMENT[node.module]:
                    yield f"{node.lineno}: {node.module}.{name.name}"


def test_only_the_command_line_reads_environment_and_arguments() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)}:{use}"
        for path in sources()
        if path.suffix == ".py" and unit(module_name(path)) not in {"cli", "__main__"}
        for use in environment_readers(path.read_text(encoding="utf-8"))
    ]
    assert not wrong, "\n".join(wrong)


def test_only_the_registry_imports_by_name() -> None:
    paths = sources()
    known = {module_name(path) for path in paths}
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line}: imports {target}"
        for path in paths
        if unit(module_name(path)) != "registry"
        for target, line, _ in imports_of(path, known)
        if target in {"importlib", "importlib.util", "imp", "runpy", "pkgutil"}
    ]
    assert not wrong, "\n".join(wrong)


# The rules themselves, on a package that breaks them.

BROKEN = {
    "__init__.py": "from diced.store import Store\n",
    "errors.py": "",
    "grid.py": "def f():\n    from diced import store\n",
    "dag.py": "from .grid import box\nif TYPE_CHECKING:\n    from diced.store import Store\n",
    "store.py": "import os as system\nfrom diced.errors import E\nplace = system.environ\n",
    "_blocks.pyx": "from libc.stdint cimport uint8_t\nfrom diced.errors import E\n",
    "_codec.pyx": "def f():\n    from diced cimport _blocks\n",
    "engine/__init__.py": "from diced.engine.local import Local\n",
    "engine/local.py": "from ..keys import spell\nfrom . import base\n",
    "engine/base.py": "from .. import log\n",
    "keys.py": "",
    "log.py": "import diced.novelty\n",
    "novelty.py": "",
}


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    package = tmp_path / "diced"
    for name, text in BROKEN.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text, encoding="utf-8")
    return package


def test_upward_and_sideways_imports_are_found(broken: Path) -> None:
    found = upward(broken)
    assert sorted(found) == [
        "_codec.pyx:2: diced._codec (level 0.07) imports diced._blocks (level 0.1)",
        "dag.py:1: diced.dag (level 1) imports diced.grid (level 1)",
        "engine/base.py:1: diced.engine.base (level 2) imports diced.log (level 3.1)",
        "grid.py:2: diced.grid (level 1) imports diced.store (level 5.2)",
        "log.py:1: diced.log imports diced.novelty, which has no level",
    ]


def test_a_module_without_a_level_is_named(broken: Path) -> None:
    (message,) = unplaced(broken)
    assert message.startswith("novelty.py: 'novelty' has no level")


def test_environment_use_is_found_behind_an_alias(broken: Path) -> None:
    text = (broken / "store.py").read_text(encoding="utf-8")
    assert list(environment_readers(text)) == ["3: os.environ"]
