"""The house rules of CONTRIBUTING.md, read from the syntax trees: who imports whom, how long things are."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import cartouche

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "cartouche"
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(path.relative_to(ROOT)) for path in FILES]

FLOORS = (
    {"config"},  # the bedrock: settings and the error class
    {"files", "cache"},
    {"device", "images"},
    {"text", "prompt", "data"},
    {"nets", "diffusion", "metrics"},
    {"weights", "engine"},
    {"draw", "read", "train"},
    {"critic", "doctor", "measure", "explain"},
    {"cli", "serve", "__init__"},
    {"__main__"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
LIGHT = "cli __init__ __main__ config files cache device doctor images text prompt data diffusion draw engine".split()
HEAVY = {"torch", "openvino"}
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}


FILE_LINES, FUNCTION_LINES = 400, 60


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def room(path):
    """The room a file belongs to: its folder in the package, or its own name."""
    inside = path.relative_to(PACKAGE)
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


def imported(node, path):
    """Full dotted names that one import statement asks for."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        package = list(path.relative_to(ROOT).parent.parts)
        above = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
        base = ".".join(part for part in (above, node.module) if part)
        return [f"{base}.{alias.name}" for alias in node.names] if base == "cartouche" else [base]
    return []


def at_import_time(node):
    """What runs when a module is imported: not the bodies of functions, not what only type checkers read."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from at_import_time(child)


def each(kind, path):
    return [node for node in ast.walk(tree(path)) if isinstance(node, kind)]


# floors


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_room_imports_only_rooms_of_lower_floors(path):
    here, wrong = room(path), []
    assert here in FLOOR, f"{here} stands on no floor; give it one here and in CONTRIBUTING.md"
    for node in each((ast.Import, ast.ImportFrom), path):
        for name in imported(node, path):
            parts = name.split(".")
            if parts[0] != "cartouche" or len(parts) < 2 or parts[1] == here:
                continue
            if parts[1].startswith("__") or FLOOR.get(parts[1], 0) >= FLOOR[here]:
                if parts[1] == "__version__":
                    continue
                wrong.append(f"line {node.lineno}: {name}")
    assert not wrong, f"{here} is on floor {FLOOR[here]} and imports upwards or sideways: {wrong}"


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_room_that_exists_is_named_as_it_is_spelled(path):
    for node in each((ast.Import, ast.ImportFrom), path):
        for name in imported(node, path):
            parts = name.split(".")
            if parts[0] == "cartouche" and len(parts) > 1 and not parts[1].startswith("__"):
                target = PACKAGE / parts[1]
                assert target.is_dir() or target.with_suffix(".py").is_file(), f"line {node.lineno}: no room {parts[1]}"


@pytest.mark.parametrize("path", [path for path in FILES if room(path) in LIGHT], ids=str)
def test_what_draws_imports_neither_torch_nor_openvino_at_the_top(path):
    tops = [name for node in at_import_time(tree(path)) for name in imported(node, path)]
    assert not HEAVY & {name.split(".")[0] for name in tops}


def test_importing_every_light_room_brings_in_neither_torch_nor_openvino():
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in FILES
        if room(path) in LIGHT and path.stem not in ("__init__", "__main__")
    ]
    code = f"import sys, {', '.join(modules)}\nprint(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_importing_the_package_reads_the_package_and_nothing_else():
    code = (
        "import sys; before = set(sys.modules); import cartouche;"
        "print(*sorted(name for name in set(sys.modules) - before if not name.startswith('cartouche')))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {name.split(".")[0] for name in done.stdout.split()} <= sys.stdlib_module_names


# size and manner


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_file_has_one_subject_and_at_most_400_lines(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= FILE_LINES, f"{lines} lines; split it by subject"


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_function_has_at_most_60_lines(path):
    functions = each((ast.FunctionDef, ast.AsyncFunctionDef), path)
    long = {one.name: one.end_lineno - one.lineno + 1 for one in functions}
    assert not {name: lines for name, lines in long.items() if lines > FUNCTION_LINES}


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_every_file_says_what_it_is_for(path):
    if path.read_text(encoding="utf-8").strip():
        assert ast.get_docstring(tree(path)), "the first line of a file says its subject"


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_bad_input_meets_words_and_never_an_assert(path):
    assert [node.lineno for node in each(ast.Assert, path)] == []


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_no_except_swallows_what_it_does_not_name(path):
    assert [node.lineno for node in each(ast.ExceptHandler, path) if node.type is None] == []


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_nothing_is_pickled_or_loaded_loosely(path):
    names = {name.split(".")[0] for node in each((ast.Import, ast.ImportFrom), path) for name in imported(node, path)}
    assert not names & PICKLES
    for call in each(ast.Call, path):
        written = ast.unparse(call.func)
        alone = path.name == "unpickle.py" and "weights_only=True" in ast.unparse(call)  # a process of its own
        assert written not in ("torch.load", "torch.save", "eval", "exec") or alone, call.lineno
        for word in call.keywords:
            said = f"{word.arg}={ast.unparse(word.value)}"
            assert not said.startswith("allow_pickle=") or said == "allow_pickle=False", f"line {call.lineno}: {said}"
            assert "load_state_dict" not in written or said != "strict=False", f"line {call.lineno}: {said}"


# papers


def table_rows(path):
    """The file names of the table "I want to see | open"."""
    text = path.read_text(encoding="utf-8")
    rows = text.split("| I want to see | open |", 1)[1].splitlines()[2:]
    for row in rows:
        if not row.startswith("|"):
            return
        yield from re.findall(r"`([^`]+)`", row.split("|")[2])


def test_every_file_that_the_readme_says_to_open_is_there():
    rows = list(table_rows(ROOT / "README.md"))
    assert len(rows) >= 8
    assert [name for name in rows if not (PACKAGE / name).exists() and not (ROOT / name).exists()] == []


@pytest.mark.parametrize("path", sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("docs/**/*.md")), ids=str)
def test_every_link_of_a_paper_leads_somewhere(path):
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (path.parent / link).exists()] == []


def test_every_file_that_the_tour_names_is_there():
    text = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:\w+/)*\w+\.py)`", text))
    assert len(named) > 12
    assert [name for name in named if not (PACKAGE / name).exists() and not (ROOT / name).exists()] == []


def test_the_version_is_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert project["version"] == cartouche.__version__ == newest.group(1)


def test_the_test_command_of_the_readme_is_the_one_that_is_run():
    commands = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    tests = next(block for block in commands if "pytest" in block).strip()
    assert tests in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


# tools


@pytest.mark.parametrize("command", [("ruff", "check"), ("mypy",)], ids=lambda command: command[0])
def test_the_tools_find_nothing_to_say(command):
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
