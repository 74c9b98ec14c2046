"""The table of names: built-in, registered, and from other packages' entry points."""

import subprocess
import sys
import threading
import uuid

import pytest

from diced import registry
from diced.errors import AlreadyExistsError, InvalidError, NotFoundError, UnsupportedError


@pytest.fixture
def name():
    """A name nobody has; entries live as long as the process."""
    return f"n{uuid.uuid4().hex}"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Return a function that installs a module with entry points, as pip would."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(module, source, entry_points, distribution=None):
        (tmp_path / f"{module}.py").write_text(source)
        distribution = distribution or module
        info = tmp_path / f"{distribution}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1\n")
        (info / "entry_points.txt").write_text(entry_points)

    yield install
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(path.stem, None)


def test_builtin():
    from diced.engine.local import open_local

    assert registry.lookup("engine", "file") is open_local
    assert {"file", "memory"} <= set(registry.names("engine"))


def test_register_an_object(name):
    target = object()
    registry.register("kind", name, target)
    assert registry.lookup("kind", name) is target
    assert name in registry.names("kind")
    assert name not in registry.names("codec")


def test_register_a_string(name):
    registry.register("codec", name, "collections.abc:Mapping.get")
    from collections.abc import Mapping

    assert registry.lookup("codec", name) is Mapping.get
    assert registry.lookup("codec", name) is Mapping.get


def test_register_twice(name):
    registry.register("codec", name, "math:sqrt")
    registry.register("codec", name, "math:sqrt")
    with pytest.raises(AlreadyExistsError, match="math:sqrt"):
        registry.register("codec", name, "math:floor")
    assert registry.lookup("codec", name)(4) == 2
    registry.register("codec", name, "math:floor", replace=True)
    assert registry.lookup("codec", name)(4.5) == 4


@pytest.mark.parametrize(
    ("group", "name", "target"),
    [
        ("engines", "x", object()),
        ("engine", "", object()),
        ("engine", 7, object()),
        ("engine", "x", "no-colon"),
        ("engine", "x", ":f"),
        ("engine", "x", "m:"),
    ],
)
def test_malformed_entries(group, name, target):
    with pytest.raises(InvalidError):
        registry.register(group, name, target)


def test_unknown_group():
    for call in (lambda: registry.lookup("nope", "x"), lambda: registry.names("nope")):
        with pytest.raises(InvalidError, match="nope"):
            call()


def test_near_match():
    with pytest.raises(NotFoundError, match="'memory'"):
        registry.lookup("engine", "memroy")


@pytest.mark.parametrize("target", ["no_such_module_anywhere:f", "math:no_such_function"])
def test_broken_target(name, target):
    registry.register("codec", name, target)
    for _ in range(2):
        with pytest.raises(UnsupportedError, match=target) as caught:
            registry.lookup("codec", name)
        assert isinstance(caught.value.__cause__, ImportError | AttributeError)


def test_entry_point(package):
    package(
        "diced_extra_a", "def opener(): return 'a'", "[diced.engine]\nxa = diced_extra_a:opener"
    )
    assert "xa" in registry.names("engine")
    assert "diced_extra_a" not in sys.modules
    assert registry.lookup("engine", "xa")() == "a"
    with pytest.raises(NotFoundError):
        registry.lookup("codec", "xa")


def test_entry_point_does_not_hide_a_builtin(package):
    package("diced_extra_b", "opener = 1", "[diced.engine]\nfile = diced_extra_b:opener")
    assert registry.lookup("engine", "file") != 1
    assert "diced_extra_b" not in sys.modules


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("import no_such_module_anywhere", ImportError),
        ("raise RuntimeError('needs a licence')", RuntimeError),
        ("def (", SyntaxError),
        ("other = 1", AttributeError),
    ],
)
def test_broken_entry_point(package, name, source, cause):
    module = f"diced_extra_{name}"
    package(module, source, f"[diced.codec]\n{name} = {module}:codec")
    with pytest.raises(UnsupportedError, match=f"{module}:codec of {module}") as caught:
        registry.lookup("codec", name)
    assert isinstance(caught.value.__cause__, cause)


def test_interrupt_during_import_passes(package, name):
    module = f"diced_extra_{name}"
    package(module, "raise KeyboardInterrupt", f"[diced.codec]\n{name} = {module}:codec")
    with pytest.raises(KeyboardInterrupt):
        registry.lookup("codec", name)


def test_entry_point_claimed_twice(package):
    package("diced_extra_c", "f = 1", "[diced.kind]\nxc = diced_extra_c:f")
    package("diced_extra_d", "f = 2", "[diced.kind]\nxc = diced_extra_d:f")
    with pytest.raises(UnsupportedError, match=r"diced_extra_c.*diced_extra_d"):
        registry.lookup("kind", "xc")


def test_lookup_from_threads(name):
    registry.register("codec", name, "json.tool:main")
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(registry.lookup("codec", name)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(found)) == 1


def test_builtin_lookup_reads_no_package_metadata():
    code = (
        "import sys; sys.modules['importlib.metadata'] = None\n"
        "from diced import registry; assert registry.lookup('engine', 'memory')"
    )
    run = [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}\n{code}"]
    assert subprocess.run(run, check=False).returncode == 0
