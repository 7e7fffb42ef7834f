"""The house stays easy to see: which way imports point, what a start costs, how long things are, what is documented."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hardbench
from hardbench.cli import commands
from hardbench.config import options

ROOT = Path(hardbench.__file__).parent
FILES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path for path in sorted(ROOT.rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}

# Imports point down only: a unit (a module or folder of the package) may import from a lower line, and within its own folder.
LINES = (
    ("__main__",),
    ("cli",),
    ("options",),
    ("commands",),
    ("studies",),
    ("lifecycle",),
    ("configs",),
    ("campaign",),
    ("trained",),
    ("tracking", "figures", "console"),
    ("written",),
    ("store",),
    ("stored",),
    ("hard_samples",),
    ("inversion",),
    ("masking", "training"),
    ("data", "models", "metrics"),
    ("machine",),
    ("settings",),
    ("config",),
    ("registry", "seeding", "products"),
    ("archives", "shapes"),
    ("files", "locks", "openmp", "ram", "signals", "streams", "yaml_text"),
    ("errors",),
)
LEVEL = {unit: line for line, units in enumerate(LINES) for unit in units}
ALONE = {"click": {"options", "cli"}, "mlflow": {"store", "written", "tracking"}, "rich": {"console"}, "matplotlib": {"figures"}}
LATE = {"sklearn", "scipy", "pandas", "torchvision"}  # inside functions only


def _imports(module: str) -> Iterator[tuple[str, bool]]:
    """(imported module, whether when the file is imported) for every import of a file; those for type checkers alone left out."""
    tree = TREES[module]
    package = module if FILES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node, late in _nodes(tree, False):
        if isinstance(node, ast.Import):
            yield from ((alias.name, not late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            home = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [node.module])]) if node.level else str(node.module)
            for alias in node.names:
                inner = f"{home}.{alias.name}"
                yield (inner if inner in FILES else home), not late


def _nodes(tree: ast.AST, late: bool) -> Iterator[tuple[ast.AST, bool]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node, late
        yield from _nodes(node, late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))


def _unit(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def test_the_files_are_found():
    assert len(FILES) > 30
    assert {_unit(module) for module in FILES} - {""} <= LEVEL.keys()
    assert ("hardbench.errors", True) in set(_imports("hardbench.registry"))
    assert ("hardbench.training.loop", True) in set(_imports("hardbench.console"))


@pytest.mark.parametrize("module", FILES)
def test_imports_point_down(module):
    for imported, _ in _imports(module):
        if imported.startswith("hardbench") and _unit(imported) not in ("", _unit(module)):
            assert LEVEL[_unit(imported)] > LEVEL.get(_unit(module), -1), f"{module} imports {imported}"


@pytest.mark.parametrize("module", FILES)
def test_libraries_stay_where_they_belong(module):
    for imported, early in _imports(module):
        library = imported.partition(".")[0]
        assert _unit(module) in ALONE.get(library, {_unit(module)}), f"{module} imports {imported}"
        assert not (library in LATE and early), f"{module} imports {imported} at once; inside the function that uses it"


def test_no_module_imports_itself_by_a_detour():
    graph = {module: {imported for imported, _ in _imports(module) if imported in FILES and imported != module} for module in FILES}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"{' -> '.join((*path, module))}"
        if module not in done:
            for imported in graph[module]:
                visit(imported, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_help_loads_no_heavy_library():
    code = "import sys; from hardbench.cli import main; main(['--help']); print(*sorted(m for m in sys.modules if '.' not in m), sep=',')"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded = set(shown.splitlines()[-1].split(","))
    assert {"hardbench", "click"} <= loaded
    assert loaded.isdisjoint({"torch", "mlflow", "matplotlib", "numpy", "pandas", "sklearn", "scipy", "torchvision", "rich"})
    for name, (_, summary) in commands().items():
        assert name in shown
        assert summary.split()[0] in shown


# budgets


@pytest.mark.parametrize("module", FILES)
def test_files_and_functions_are_short(module):
    lines = len(FILES[module].read_text().splitlines())
    assert lines <= 400
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno + 1 <= 50, f"{node.name} is too long"


def test_the_package_is_short():
    """Lines of code: blank lines and docstrings cost a reader nothing."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    lines = 0
    for name, path in FILES.items():
        nodes = [node for node in ast.walk(TREES[name]) if isinstance(node, documented)]
        docstrings = [node.body[0] for node in nodes if ast.get_docstring(node) is not None]
        lines += sum(1 for line in path.read_text().splitlines() if line.strip())
        lines -= sum((part.end_lineno or 0) - part.lineno + 1 for part in docstrings)
    assert lines < 11_000


# words


@pytest.mark.parametrize("module", FILES)
def test_everything_public_is_documented(module):
    tree = TREES[module]
    assert ast.get_docstring(tree), "no docstring of the module"
    for node in _public(tree):
        text = ast.get_docstring(node) or ""
        assert text.strip(), f"{node.name} has no docstring"


def _public(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from _public(node)


@pytest.mark.parametrize("command", commands())
def test_every_setting_has_help(command):
    module = importlib.import_module(commands()[command][0])
    for name, option in options(module.Config).items():
        assert len(option.declared.help) > 3, name
        assert option.declared.help.endswith("."), name
        assert option.declared.help[0].isupper(), name
        assert option.kind in (bool, int, float, str, tuple, dict), name


# never


@pytest.mark.parametrize("module", FILES)
def test_never(module):
    assert FILES[module].stem not in ("utils", "helpers", "common", "base", "misc")
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.ImportFrom):
            assert all(alias.name != "*" for alias in node.names)
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called != "print", f"print in line {node.lineno}"
            assert module == "hardbench.seeding" or called not in ("torch.manual_seed", "np.random.seed", "random.seed"), called
            assert called != "torch.load" or "weights_only=True" in ast.unparse(node), f"line {node.lineno}"
            assert called not in ("np.load", "numpy.load") or "allow_pickle=False" in ast.unparse(node), f"line {node.lineno}"
        if isinstance(node, ast.FunctionDef):
            defaults = [*node.args.defaults, *filter(None, node.args.kw_defaults)]
            assert not any(isinstance(default, ast.List | ast.Dict | ast.Set) for default in defaults), node.name
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"bare except in line {node.lineno}"
