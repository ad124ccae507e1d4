"""The package as a whole: what travels to the Hub stands on its own."""

import ast
import sys
import tomllib
from pathlib import Path

import pytest

import hsvae_hf

PACKAGE = Path(hsvae_hf.__file__).parent
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
    metadata = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())
    assert metadata["project"]["version"] == hsvae_hf.__version__
