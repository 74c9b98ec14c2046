"""Builds the kernels. Compiler directives live here only, so one switch makes a checked build.

``DICED_CHECKED=1 pip install .`` compiles every kernel with bounds, wraparound and initialisation
checks; a bad index then raises instead of reading stray memory.
"""

import os
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

CHECKED = os.environ.get("DICED_CHECKED") == "1"

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": CHECKED,
    "wraparound": False,
    "initializedcheck": CHECKED,
    "cdivision": not CHECKED,
    "embedsignature": True,
    "freethreading_compatible": True,
}

# -g0: Python's own flags ask for debug information, which made the extensions five times as large.
# A checked build is for tests: -O1 compiles in half the time.
FLAGS = ["-O1", "-g"] if CHECKED else ["-O3", "-g0"]

extensions = [
    Extension(
        f"diced.{path.stem}",
        [str(path)],
        include_dirs=["src/diced"],
        depends=[str(header) for header in sorted(path.parent.glob("*.h"))],
        extra_compile_args=[] if os.name == "nt" else FLAGS,
        define_macros=[("DICED_CHECKED", "1")] if CHECKED else [],
    )
    for path in sorted(Path("src/diced").glob("_*.pyx"))
]

# pip asks for metadata twice before it builds, and Cython takes its time.
METADATA, BUILDS = {"egg_info", "dist_info"}, {"build", "build_ext", "bdist_wheel", "install"}
asked = set(sys.argv[1:])
if not asked & METADATA or asked & BUILDS:
    # force: Cython's own cache does not notice a change of directives.
    extensions = cythonize(
        extensions,
        compiler_directives=DIRECTIVES,
        build_dir="build/cython",
        force=True,
        nthreads=os.cpu_count() or 1 if sys.platform == "linux" else 0,
    )

setup(ext_modules=extensions, options={"build_ext": {"parallel": os.cpu_count() or 1}})
