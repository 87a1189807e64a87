"""Pages of the site that are made when it is built: from files at the top of the repository, and from the code."""

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))  # of this hook

import executed  # isort: skip
from mnist_jax.attack import methods
from mnist_jax.commands import attack, certify, demo, evaluate, train

TOP = Path(__file__).parents[2]
INCLUDED = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
COMMANDS = (train, evaluate, attack, certify, demo)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    pages = {page: included(name) for name, page in INCLUDED.items()}
    pages |= {"reference/attacks.md": attacks(), "reference/commands.md": commands()}
    pages |= {f"notebook/{name}": content for name, content in executed.pages(TOP / "docs/notebook/tour.py").items()}
    for page, content in pages.items():
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Links from docs/ to what is included are to its page."""
    for name, page in INCLUDED.items():
        markdown = markdown.replace(f"](../{name}", f"]({page}")
    return markdown


def included(name: str) -> str:
    """A file of the top of the repository, with its links as they are from docs/, and none to what the site lacks."""
    text = (TOP / name).read_text()
    for other, page in INCLUDED.items():
        text = text.replace(f"]({other}", f"]({page}")
    text = re.sub(r"\[docs/(\w+\.md)\]", lambda page: f"[{title(page[1])}]", text)
    text = text.replace("](docs/", "](").replace("](notebook/tour.py)", "](notebook/tour.md)")
    return re.sub(r"\[([^\]]+)\]\((?:LICENSE|mnist_jax/[^)]*)\)", r"\1", text)


def title(page: str) -> str:
    return (TOP / "docs" / page).read_text().splitlines()[0].removeprefix("# ")


def attacks() -> str:
    """Every attack with its docstring."""
    radius = {name: "radius" in methods.parameters(name) for name in methods.METHODS}
    sections = {
        "For the smallest perturbation": [name for name in radius if not radius[name]],
        "At a radius": [name for name in radius if radius[name]],
        # A function that has the name of its module is found by its own place only.
        "Around attacks": ["robust_accuracy.robust_accuracy", "at_once", "progress"],
    }
    parts = ["# Attacks: reference", "::: mnist_jax.attack.AttackResult"]
    for heading, names in sections.items():
        parts.append(f"## {heading}")
        parts += [f"::: mnist_jax.attack.{name}\n    options: {{heading_level: 3}}" for name in names]
    return "\n\n".join(parts)


def commands() -> str:
    """What each command says of itself when it is asked for `--help`."""
    parts = ["# Command lines"]
    for command in COMMANDS:
        name = command.__name__.rpartition(".")[2]
        parts.append(f"## python -m mnist_jax.{name}\n\n```text\n{help_of(command.parse)}\n```")
    return "\n\n".join(parts)


def help_of(parse: Callable[[list[str]], object]) -> str:
    os.environ["COLUMNS"] = "90"  # as wide as the column of the page
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        parse(["--help"])
    return said.getvalue().strip()
