"""Rules of the code base: the direction of imports, the cost of a start, the length of files and functions, documentation."""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

import hardbench
from hardbench.cli import commands, settings_of
from hardbench.config import options

ROOT = Path(hardbench.__file__).parent


def _modules(folder: Path) -> dict[str, Path]:
    """Every file of a package, by the name it is imported by."""
    names = {path: path.relative_to(ROOT.parent).with_suffix("").parts for path in sorted(folder.rglob("*.py"))}
    return {".".join(parts).removesuffix(".__init__"): path for path, parts in names.items()}


FILES = _modules(ROOT)
EVERYWHERE = FILES | _modules(ROOT.parent / "benchmarks")
TREES = {name: ast.parse(path.read_text()) for name, path in EVERYWHERE.items()}

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
    ("score_runs",),
    ("trained", "hardness_runs"),
    ("tracking", "figures", "console"),
    ("written",),
    ("taking",),
    ("store",),
    ("stored",),
    ("hard_samples",),
    ("inversion",),
    ("masking", "training"),
    ("data", "models", "metrics"),
    ("machine",),
    ("settings",),
    ("config", "rules"),
    ("declaration",),
    ("registry", "seeding", "products"),
    ("archives", "artifacts"),
    ("files",),
    ("locks", "openmp", "ram", "signals", "streams", "yaml_text"),
    ("errors",),
)
LEVEL = {unit: line for line, units in enumerate(LINES) for unit in units}
ALONE = {"click": {"options", "cli"}, "mlflow": {"store", "taking", "written", "tracking"}, "rich": {"console"}, "matplotlib": {"figures"}}
LATE = {"sklearn", "scipy", "pandas", "torchvision"}  # inside functions only
LINES_OF_A_FILE, LINES_OF_A_FUNCTION = 350, 50
LINES_OF_THE_PACKAGE = 10_400 + 2_450  # scores of sample hardness, planted hardness and pruning are the second number


def _imports(module: str) -> Iterator[tuple[str, bool]]:
    """(imported module, True if it is imported when the file is) for every import of a file, those for type checkers included."""
    package = module if EVERYWHERE[module].name == "__init__.py" else module.rpartition(".")[0]
    for node, late in _nodes(TREES[module], False):
        if isinstance(node, ast.Import):
            yield from ((alias.name, not late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            home = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [node.module])]) if node.level else str(node.module)
            for alias in node.names:
                inner = f"{home}.{alias.name}"
                yield (inner if inner in EVERYWHERE else home), not late


def _nodes(tree: ast.AST, late: bool) -> Iterator[tuple[ast.AST, bool]]:
    """(node, True if it is not executed when the file is imported) for every node of a tree."""
    for node in ast.iter_child_nodes(tree):
        yield node, late
        types_only = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        yield from _nodes(node, late or types_only or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))


def _unit(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def test_the_files_are_found():
    assert len(FILES) > 100 and "benchmarks.rows.greedy" in EVERYWHERE
    assert {_unit(module) for module in FILES} - {""} <= LEVEL.keys()
    assert ("hardbench.errors", True) in set(_imports("hardbench.registry"))
    assert ("hardbench.training.loop", True) in set(_imports("hardbench.training.callbacks"))


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


def test_no_imports_in_a_circle():
    """Neither in the package nor in the benchmarks, imports inside functions and for type checkers included."""
    finished: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"{' -> '.join((*path, module))}"
        if module not in finished:
            for imported in {imported for imported, _ in _imports(module)} & EVERYWHERE.keys() - {module}:
                visit(imported, (*path, module))
            finished.add(module)

    for module in EVERYWHERE:
        visit(module, ())


def test_studies_do_not_import_each_other():
    """Only simulate, which is a chain of studies, does."""
    studies = {module for module in FILES if module.startswith("hardbench.studies.")} - {"hardbench.studies.simulate"}
    for module in studies:
        assert not [imported for imported, _ in _imports(module) if imported.startswith("hardbench.studies.")], module


@pytest.mark.parametrize("module", EVERYWHERE)
def test_no_private_name_of_a_library(module):
    """A name with one leading underscore is used only in the file that defines it. `os._exit` is public in spite of its name."""
    nodes = list(ast.walk(TREES[module]))
    defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    defined |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    defined |= {ast.unparse(node.target) for node in nodes if isinstance(node, ast.AnnAssign)} | {"_exit"}
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            paths = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            used |= {name for path in paths for name in path.split(".")}
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr"):
            used |= {arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)}
    assert {name for name in used - defined if name.startswith("_") and not name.startswith("__")} == set()


def test_help_loads_no_heavy_library():
    code = "import sys; from hardbench.cli import main; main(['--help']); print(*sorted(m for m in sys.modules if '.' not in m), sep=',')"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded = set(shown.splitlines()[-1].split(","))
    assert {"hardbench", "click"} <= loaded
    assert loaded.isdisjoint({"torch", "mlflow", "matplotlib", "numpy", "pandas", "sklearn", "scipy", "torchvision", "rich"})
    for name, path in commands().items():
        assert f"{name} " in shown
        assert path.read_text().split()[0].strip('"') in shown


# budgets


@pytest.mark.parametrize("module", EVERYWHERE)
def test_files_are_short(module):
    assert len(EVERYWHERE[module].read_text().splitlines()) <= LINES_OF_A_FILE


@pytest.mark.parametrize("module", EVERYWHERE)
def test_functions_are_short(module):
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno + 1 <= LINES_OF_A_FUNCTION, f"{node.name} is too long"


def _code_lines(source: str) -> int:
    """Lines with a token of code on them: blank lines, comments and docstrings (any string that is a statement) do not count."""
    layout = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    tokens = [token for token in tokenize.generate_tokens(io.StringIO(source).readline) if token.type not in layout]
    code = {line for token in tokens for line in range(token.start[0], token.end[0] + 1)}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            code -= set(range(node.lineno, (node.end_lineno or 0) + 1))
    return len(code)


def test_lines_of_code_are_counted():
    source = ['"""Docstring.', "", 'Of three lines."""', "", "# comment", "x = (  # comment", "    1", "", ")", 'y = """a', "", 'b"""']
    source += ["def f():", '    """Docstring."""', "    return x", "", '"""Of f."""']
    assert _code_lines("\n".join(source)) == 3 + 3 + 2


def test_the_package_is_short():
    assert sum(_code_lines(path.read_text()) for path in FILES.values()) <= LINES_OF_THE_PACKAGE


# words


@pytest.mark.parametrize("module", FILES)
def test_everything_public_is_documented(module):
    tree = TREES[module]
    assert ast.get_docstring(tree), "no docstring of the module"
    for node in _public(tree):
        text = ast.get_docstring(node) or ""
        assert text.strip(), f"{node.name} has no docstring"


def test_docstrings_cite_only_what_is_in_the_repository():
    """Files by their name, and none of the documents that the project was planned with."""
    repository = ROOT.parent
    inside = [path for path in repository.glob("*") if path.is_file()]
    for folder in ("hardbench", "benchmarks", "tests", "docs"):
        inside += [path for path in (repository / folder).rglob("*") if path.is_file()]
    known = [f"/{path.relative_to(repository)}" for path in inside]
    for path in inside:
        if path.suffix == ".py" and path != Path(__file__):
            for node in ast.walk(ast.parse(path.read_text())):
                text = (ast.get_docstring(node) or "") if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) else ""
                for cited in re.findall(r"[\w/-]+\.(?:py|md)\b", text):
                    assert any(name.endswith(f"/{cited}") for name in known), f"{path} cites {cited}"
                assert not re.search(r"\b(DEFINITIONS|INTERFACE|DESIGN)\b", text), f"{path}: {text}"


def _public(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from _public(node)


@pytest.mark.parametrize("command", commands())
def test_every_setting_has_help(command):
    for name, option in options(settings_of(command).Config).items():
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
