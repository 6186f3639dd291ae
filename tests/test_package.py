"""The house itself: public names, lightness of import, floors, and what tracked files may not say."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import longtake
from longtake.cli.console import ModelOption
from longtake.train.extra import PACKAGES

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "longtake"

FLOORS = [
    {"types"},
    {"outputs"},
    {"video", "select", "memory", "shards", "evidence"},
    {"models", "backbones", "data"},
    {"watch", "ask", "train"},
    {"model"},
    {"eval", "recipes"},
    {"tables"},
    {"cli"},
]
FLOOR = {unit: height for height, units in enumerate(FLOORS) for unit in units}


def modules() -> dict[str, Path]:
    """Dotted name to file of every module but the package's own ``__init__``, which only points at names."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = ["longtake", *path.relative_to(SOURCE).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    del found["longtake"]
    return found


def imports(path: Path) -> set[str]:
    """Dotted names a file imports, function-level and type-checking imports included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full, so that the floors can be read"
            names.update({str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)})
    return names


def our_imports() -> dict[str, set[str]]:
    """Which of our modules each of our modules imports."""
    known = modules()
    return {name: {other for other in imports(path) if other in known} - {name} for name, path in known.items()}


def unit(module: str) -> str:
    return module.split(".")[1]


def tracked_files() -> list[Path]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_root_names_are_few_sorted_and_real():
    assert longtake.__all__ == sorted(longtake.__all__)
    assert len(longtake.__all__) <= 15
    for name in longtake.__all__:
        assert getattr(longtake, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = longtake.nothing


def test_what_a_user_needs_is_at_the_root():
    assert {"Usage", "load_memory", "save_memory"} <= set(longtake.__all__)
    assert not hasattr(longtake, "Query")  # no public call takes one
    assert {"select", "video"} <= set(dir(longtake))


def test_modules_are_found_after_the_import_alone_and_bring_no_torch():
    code = "import sys, longtake; print(longtake.select.Uniform(), longtake.video.open, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert re.fullmatch(r"Uniform\(\) <function open at .*> False\n", done.stdout), done.stderr


def test_a_model_is_told_by_the_same_words_everywhere():
    told = [longtake.load.__doc__, ModelOption.__metadata__[0].help, (ROOT / "README.md").read_text("utf-8")]
    assert ["folder or hub id" in text for text in told] == [True] * 3


@pytest.mark.parametrize("module", ["longtake", "longtake.types", "longtake.video", "longtake.cli"])
def test_import_is_free_of_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_import_takes_under_half_a_second():
    # processor time: what a busy machine takes away is not ours
    code = "import time; start = time.process_time(); import longtake; print(time.process_time() - start)"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True) for _ in range(3)]
    assert min(float(run.stdout) for run in runs) < 0.5


def test_imports_point_down_only():
    for module, others in our_imports().items():
        assert unit(module) in FLOOR, f"{module} stands on no floor; give it one in this test and in the design"
        for other in others:
            assert FLOOR[unit(other)] <= FLOOR[unit(module)], f"{module} imports {other}, which is above it"


def test_the_two_verbs_do_not_know_each_other():
    graph = our_imports()
    assert "longtake.ask" not in graph["longtake.watch"]
    assert "longtake.watch" not in graph["longtake.ask"]


def has_cycle(graph: dict[str, set[str]]) -> list[str]:
    """Nodes left when those that import nothing left are taken away again and again: empty without a cycle."""
    left = {node: set(others) for node, others in graph.items()}
    while free := [node for node, others in left.items() if not others & left.keys()]:
        for node in free:
            del left[node]
    return sorted(left)


def test_has_cycle_finds_one():
    assert has_cycle({"a": {"b"}, "b": {"a"}, "c": {"a"}, "d": set()}) == ["a", "b", "c"]
    assert has_cycle({"a": {"b"}, "b": set()}) == []


def test_imports_make_no_circle():
    graph = our_imports()
    assert has_cycle(graph) == []
    folders: dict[str, set[str]] = {}
    for module, others in graph.items():
        folders.setdefault(unit(module), set()).update(unit(other) for other in others if unit(other) != unit(module))
    assert has_cycle(folders) == []


def test_tables_are_imported_by_tables_alone():
    graph = our_imports()
    tables = {module for module in graph if unit(module) == "tables"}
    assert {f"longtake.tables.{family}.__main__" for family in ("ablations", "latent", "mvp")} <= tables
    users = {module: others & tables for module, others in graph.items() if module not in tables}
    assert {module: used for module, used in users.items() if used} == {}


def extras() -> dict[str, set[str]]:
    """The packages that each extra brings."""
    told = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    return {extra: {re.split(r"[^\w-]", need)[0] for need in needs} - {"longtake"} for extra, needs in told.items()}


def test_training_asks_for_the_packages_of_its_extra():
    assert set(PACKAGES) == extras()["train"]


def test_optional_packages_are_imported_where_they_are_used():
    optional = {package for extra, packages in extras().items() if extra != "dev" for package in packages}
    assert {"accelerate", "matplotlib", "ray"} <= optional
    found = {}
    for name, path in modules().items():
        for statement in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in statement.names] if isinstance(statement, ast.Import) else []
            names += [str(statement.module)] if isinstance(statement, ast.ImportFrom) else []
            if there := {each.split(".")[0] for each in names} & optional:
                found[name] = there
    assert found == {}


def test_only_video_knows_pyav():
    users = {unit(name) for name, path in modules().items() if {n.split(".")[0] for n in imports(path)} & {"av"}}
    assert users <= {"video"}


def test_no_torchvision():
    assert [name for name, path in modules().items() if any(n.startswith("torchvision") for n in imports(path))] == []


def test_source_files_stay_short():
    long = {name: n for name, path in modules().items() if (n := len(path.read_text("utf-8").splitlines())) > 400}
    assert long == {}


def test_functions_stay_short():
    long = {
        f"{module}.{node.name}": lines
        for module, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and (lines := node.end_lineno - node.lineno + 1) >= 60
    }
    assert long == {}


def test_agents_file_fits_a_screen_or_two():
    assert len((ROOT / "AGENTS.md").read_text("utf-8").splitlines()) <= 80


def test_tracked_files_name_no_machine():
    places = "|".join(["work", "root", "home", "Users", "opt", "mnt"])
    pattern = re.compile(rf"(?<![\w.~)}}\]*-])/({places})/\w".encode())
    named = {}
    for path in tracked_files():
        data = path.read_bytes()
        if b"\0" not in data[:8192] and (found := pattern.search(data)):
            named[str(path.relative_to(ROOT))] = found.group().decode()
    assert named == {}
