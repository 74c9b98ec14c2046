"""What the installed package promises: its version, its types, its cheap import."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import diced

INSTALLED = Path(diced.__file__).parent
SOURCE = Path(__file__).resolve().parent.parent / "src" / "diced"


def run(code: str) -> str:
    """Run Python in a fresh process and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_version_is_that_of_the_metadata() -> None:
    assert diced.__version__ == importlib.metadata.version("diced")


def test_types_are_shipped() -> None:
    assert (INSTALLED / "py.typed").is_file()
    for kernel in sorted(SOURCE.glob("_*.pyx")):
        assert kernel.with_suffix(".pyi").is_file(), f"{kernel.name} has no .pyi beside it"
        assert (INSTALLED / f"{kernel.stem}.pyi").is_file(), f"{kernel.stem}.pyi is not installed"


def test_what_is_not_code_is_shipped() -> None:
    kinds = {".css", ".html", ".js", ".json", ".svg"}
    found = [path for path in SOURCE.rglob("*") if path.suffix in kinds]
    assert {"page", "schemas"} <= {path.parent.name for path in found}
    for path in found:
        name = path.relative_to(SOURCE)
        assert (INSTALLED / name).read_bytes() == path.read_bytes(), f"{name} is not installed"


def test_every_kernel_is_importable() -> None:
    names = [kernel.stem for kernel in sorted(SOURCE.glob("_*.pyx"))]
    assert names
    run("".join(f"import diced.{name}\n" for name in names))


def test_stubs_name_what_the_kernels_have() -> None:
    for stub in sorted(INSTALLED.glob("_*.pyi")):
        tree = ast.parse(stub.read_text(encoding="utf-8"))
        declared = {
            node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)
        }
        code = f"import json, diced.{stub.stem} as kernel; print(json.dumps(dir(kernel)))"
        missing = declared - set(json.loads(run(code)))
        assert not missing, f"{stub.name} declares {sorted(missing)}, which is not in the kernel"


def test_import_leaves_slow_packages_alone() -> None:
    slow = ["google", "zstandard", "lz4", "concurrent.futures", "h5py", "PIL", "tqdm", "tifffile"]
    loaded = json.loads(
        run(
            "import json, sys, numpy\n"
            "before = set(sys.modules)\n"
            "import diced\n"
            "print(json.dumps(sorted(set(sys.modules) - before)))"
        )
    )
    assert "diced" in loaded
    assert not [name for name in loaded if name in slow or name.split(".")[0] in slow]


def test_public_names_exist_and_say_what_they_are() -> None:
    assert "DicedStore" in diced.__all__
    for name in diced.__all__:
        value = getattr(diced, name)
        if isinstance(value, type) or callable(value):
            assert value.__doc__, f"diced.{name} has no docstring"


def test_modules_say_what_they_own() -> None:
    silent = [
        str(path.relative_to(SOURCE))
        for form in ("*.py", "*.pyx")
        for path in sorted(SOURCE.rglob(form))
        if not path.read_text(encoding="utf-8").lstrip().startswith(('"""', 'r"""', "#!"))
    ]
    assert not silent, f"without a docstring at the top: {silent}"
