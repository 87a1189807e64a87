"""Prints the lowest versions that pyproject.toml declares, as constraints for pip, of the package and of its tests."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
for line in project["dependencies"] + project["optional-dependencies"]["test"]:
    requirement = Requirement(line)
    (lowest,) = (part.version for part in requirement.specifier if part.operator == ">=")
    print(f"{requirement.name}=={lowest}")
