"""The package as a whole: what travels to the Hub stands on its own, and every script explains itself."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hsvae_hf

PACKAGE = Path(hsvae_hf.__file__).parent
SCRIPTS = sorted((PACKAGE.parent / "scripts").rglob("*.py"))
TRAVELLERS = [
    path for path in sorted((PACKAGE / "models").iterdir()) if path.suffix == ".py" and path.stem != "__init__"
]


@pytest.mark.parametrize("path", TRAVELLERS, ids=lambda path: path.name)
def test_files_that_travel_to_the_hub_import_only_each_other(path):
    allowed = {"torch", "transformers", "huggingface_hub"} | set(sys.stdlib_module_names)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert all(name.name.split(".")[0] in allowed for name in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.module, "`from . import x` does not survive the copy to the Hub"
            if node.level:
                assert node.level == 1
                assert f"{node.module}.py" in {traveller.name for traveller in TRAVELLERS}
            else:
                assert node.module.split(".")[0] in allowed - {"__future__"}


def test_version_is_that_of_the_metadata():
    import tomllib

    metadata = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())
    assert metadata["project"].get("version", hsvae_hf.__version__) == hsvae_hf.__version__


@pytest.mark.parametrize(
    "path", [path for path in SCRIPTS if "def main()" in path.read_text()], ids=lambda path: path.name
)
def test_every_script_explains_its_options(path):
    result = subprocess.run([sys.executable, str(path), "--help"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("usage:")
