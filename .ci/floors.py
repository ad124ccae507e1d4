"""Print the oldest versions that pyproject.toml allows, as pip constraints: `name>=1.2,<2` becomes `name==1.2`."""

import re
import tomllib
from pathlib import Path

metadata = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))
project = metadata["project"]
declared = metadata["build-system"]["requires"] + project["dependencies"]
declared += [requirement for extra in project["optional-dependencies"].values() for requirement in extra]
floors = [re.match(r"([\w.-]+)>=([\w.]+)", requirement) for requirement in declared]
for name, version in (found.groups() for found in floors if found):
    if name != "torch":  # which version of it depends on what the package index offers: see the Makefile
        print(f"{name}=={version}")
