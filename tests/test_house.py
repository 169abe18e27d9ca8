"""The house: which room may import which, that a name has one home, how large the core is, how lines are written."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CORE = sorted((ROOT / "clipdec").glob("*.py"))
FILES = sorted(path for room in ("clipdec", "data_prep", "tests", "benchmarks") for path in (ROOT / room).rglob("*.py"))
ROOMS = {room: {"core"} for room in ("core", "training", "reference", "data_prep")}  # may import, beside themselves
ROOMS |= {room: {"core", "training"} for room in ("predictor", "comparison")}
ROOMS |= {room: {"core", "training", "predictor"} for room in ("export", "notebook", "share")}


def name_of(path):
    """"clipdec.training.run" of its path."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): ast.parse(path.read_text(encoding="utf8")) for path in FILES}
INSIDE = [name for name in MODULES if name.split(".")[0] in ("clipdec", "data_prep")]


def room_of(module):
    """The room of a module: "core", a folder of clipdec, or data_prep."""
    parts = module.split(".")
    folder = ROOT / "clipdec" / parts[1] if parts[0] == "clipdec" and len(parts) > 1 else None
    return parts[0] if parts[0] != "clipdec" else parts[1] if folder and folder.is_dir() else "core"


def imports(module):
    """(module of clipdec, name or None) of every import, those inside of functions too."""
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import in line {node.lineno}"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield (inner, None) if inner in MODULES else (node.module, alias.name)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)


@pytest.mark.parametrize("module", [name for name in INSIDE if name != "clipdec"])
def test_rooms_import_downwards_only(module):
    room = room_of(module)
    found = {name for name, _ in imports(module) if name.split(".")[0] == "clipdec"}
    assert "clipdec" not in found, "import a name from its home, not from the package"
    assert {room_of(name) for name in found} <= ROOMS[room] | {room}
    if room == "reference":
        assert {name for name in found if room_of(name) == "core"} <= {"clipdec.decoder"}


def defined(module):
    """Names that a module itself defines at its top."""
    for node in MODULES[module].body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name))


@pytest.mark.parametrize("module", INSIDE)
def test_names_are_imported_from_their_home(module):
    """Nothing but an __init__ re-exports."""
    for home, name in imports(module):
        in_file = home in MODULES and (ROOT / home.replace(".", "/")).with_suffix(".py").is_file()
        if name and in_file and home != "clipdec":
            assert name in set(defined(home)), f"{name} is not at home in {home}"


def test_the_core_can_be_read_in_an_evening():
    assert len(CORE) <= 11 and sum(len(path.read_text(encoding="utf8").splitlines()) for path in CORE) <= 1320


def test_the_core_knows_no_settings_processes_or_bars():
    for path in CORE:
        used = {name.split(".")[0] for name, _ in imports(name_of(path))}
        used |= {node.arg for node in ast.walk(MODULES[name_of(path)]) if isinstance(node, ast.arg)} & {"config"}
        wrong = {"accelerate", "filelock", "tqdm", "signal", "multiprocessing", "tensorboard", "config"}
        assert not used & wrong, path.name


@pytest.mark.parametrize("module", MODULES)
def test_no_assignment_hides_in_an_argument(module):
    for node in ast.walk(MODULES[module]):
        hiding = [node.value] if isinstance(node, ast.AugAssign) else []
        if isinstance(node, ast.Call):
            hiding = [*node.args, *(keyword.value for keyword in node.keywords)]
        loops = ast.GeneratorExp | ast.ListComp | ast.DictComp | ast.SetComp
        inner = [n for part in hiding if not isinstance(part, loops) for n in ast.walk(part)]
        assert not any(isinstance(n, ast.NamedExpr) for n in inner), f"line {node.lineno}"


def test_ruff_finds_nothing():
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "."], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
