"""The house stands: Python's own modules stay Python's, the command line is quick, the wheel holds three rooms."""

import platform
import resource
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
HEAVY = ("torch", "prefect", "kubernetes", "ray", "torchx", "pydantic", "s3fs")


def python(*arguments: str, cwd: Path = ROOT) -> str:
    """stdout of this interpreter; fails with its stderr."""
    done = subprocess.run([sys.executable, *arguments], check=False, cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_platform_is_pythons_own_under_pytest() -> None:
    assert Path(platform.__file__).parent == Path(subprocess.__file__).parent


def test_import_platform_is_pythons_own_from_the_root() -> None:
    shown = python("-c", "import platform; print(platform.__file__)")  # -c puts the current folder first on sys.path
    assert Path(shown) == Path(platform.__file__)


def test_import_platform_is_pythons_own_from_python_m_pytest(tmp_path: Path) -> None:
    test = tmp_path / "test_it.py"
    test.write_text(f"import platform\n\ndef test_it():\n    assert platform.__file__ == {platform.__file__!r}\n")
    assert "1 passed" in python("-m", "pytest", "-q", "-p", "no:cacheprovider", str(test))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    python("-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder))
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_the_three_rooms_and_no_platform_package(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {"stagecoach", "stagecoach_workloads", "stagecoach_flows"} <= tops
    assert not tops & {"platform", "workloads", "flows", "tests"}


def test_import_platform_is_pythons_own_from_an_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=False)
    interpreter = tmp_path / "env/bin/python"
    (site,) = (tmp_path / "env/lib").glob("python*/site-packages")
    zipfile.ZipFile(wheel).extractall(site)
    code = "import platform, stagecoach; print(platform.__file__); print(stagecoach.__file__)"
    shown = subprocess.run([interpreter, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout.split()
    assert Path(shown[0]) == Path(platform.__file__)
    assert Path(shown[1]).is_relative_to(site)


@pytest.mark.parametrize("room", ["platform", "workloads", "flows", "tests"])
def test_rooms_have_no_init(room: str) -> None:
    assert not (ROOT / room / "__init__.py").exists()


def test_the_command_line_draws_in_nothing_heavy() -> None:
    code = f"import sys, stagecoach.cli; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert python("-c", code) == "[]"


def test_help_loads_every_command_and_nothing_heavy() -> None:
    code = (
        "import sys\nfrom stagecoach.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print('heavy:', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    shown = python("-c", code)
    for point in entry_points(group="stagecoach.commands"):
        assert f"\n  {point.name} " in shown
    assert shown.endswith("heavy: []")


def test_help_takes_less_than_half_a_second() -> None:
    """Processor seconds, the best of five: the budget is the program's, not a busy machine's."""

    def processor_seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        python("-m", "stagecoach.cli", "--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    best = min(processor_seconds() for _ in range(5))
    print(f"stagecoach --help: {best:.2f} s of one core")
    assert best < 0.5
