"""The notebook as a page: run when the site is made, with what its cells print and draw."""

import base64
import functools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jupytext
import nbclient
import nbformat
from traitlets.config import Config

from mnist_jax.unstable import compile_quickly

SECONDS = 600  # for a cell, at most


@functools.cache  # `mkdocs serve` makes the site at every change of another page
def run(text: str) -> nbformat.NotebookNode:
    """The notebook of that text, after all of its cells have run. Raises where one fails."""
    compile_quickly()  # for the kernel, which inherits it
    os.environ.setdefault("IPYTHONDIR", tempfile.mkdtemp())  # the user's own settings have no part in it
    notebook = jupytext.reads(text, fmt="py:percent")
    settings = Config({"KernelManager": {"transport": "ipc"}})  # not by a port, for which it would warn
    nbclient.NotebookClient(notebook, timeout=SECONDS, kernel_name="python3", config=settings).execute()
    return notebook


def pages(path: Path) -> dict[str, str | bytes]:
    """The notebook at `path` as files by their names: NAME.md, its pictures, and NAME.ipynb with all it printed."""
    notebook, name = run(path.read_text()), path.stem
    pictures: dict[str, bytes] = {}
    parts = [part for cell in notebook.cells for part in rendered(cell, name, pictures)]
    return {f"{name}.md": "\n\n".join(parts), f"{name}.ipynb": nbformat.writes(notebook)} | pictures


def rendered(cell: nbformat.NotebookNode, name: str, pictures: dict[str, bytes]) -> Iterator[str]:
    """A cell as Markdown; adds its pictures. Raises `ValueError` where it printed a warning."""
    if cell.cell_type == "markdown":
        yield cell.source
        return
    yield f"```python\n{cell.source}\n```"
    if printed := "".join(output.text for output in cell.outputs if output.get("name") == "stdout"):
        yield f"```text\n{printed.rstrip()}\n```"
    for output in cell.outputs:
        if output.get("name") == "stderr":
            raise ValueError(f"a cell of {name} warns: {output.text}")
        if "image/png" in output.get("data", {}):
            picture = f"{name}-{len(pictures)}.png"
            pictures[picture] = base64.b64decode(output.data["image/png"])
            yield f"![{output.metadata['image/png']['alt']}]({picture})"
