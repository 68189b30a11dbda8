"""The notebooks of docs/notebooks run from top to bottom at toy size, and hold no outputs; Jupyter is not needed.

A notebook is made a script. A line after ! that starts fastmfr calls the command within the script's process, which
imports torch once; another line after ! is run by a shell. Pictures are one white pixel: drawing takes longer than all
the rest, and other tests look at pictures.
"""

import json
import os
import re
from pathlib import Path

import pytest
import yaml
from helpers import on_ranks
from test_readme import docs_module

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]
generate = docs_module("generate")
TOY = (
    "--threads 1 --data.threads 1 --data.size 32 --model.width 0.0625 --data.decode pillow --data.holdout 0.5 "
    "--pretrain.steps 4 --pretrain.batch_identities 6 --meta.steps 2 --meta.batch_identities 4"
)
PARAMETERS = {
    "quickstart": {"OPTIONS": f"{TOY} --data.synthetic.identities 16 --data.synthetic.images 3"},
    "own_data": {"PEOPLE": 12, "IMAGES": 3, "OPTIONS": TOY},
}
LEFT = {  # what a notebook leaves in an empty folder
    "quickstart": ("runs/*/report.html", "runs/*/mfr.safetensors"),
    "own_data": ("sheets/nir.png", "runs/*/report.html", "runs/*/evaluation.json", "embeddings/nir/embeddings.npy"),
}
PRELUDE = """
import shlex, subprocess, sys
from PIL import Image
from matplotlib.figure import Figure
from fastmfr import report
from fastmfr.__main__ import main

def white(*drawn, **_):
    Image.new("RGB", (1, 1), "white").save(drawn[-1])

Figure.savefig = report.contact_sheet = report.hardest_sheet = white

def shell(line):
    words = shlex.split(line)
    if words[:3] == [sys.executable, "-m", "fastmfr"]:
        assert main(words[3:]) == 0, line
    else:
        subprocess.run(line, shell=True, check=True)
"""


def cells(path, kind):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def in_python(source):
    """The source of a cell, with each line after ! as a call of `shell`; {...} in the line is Python."""
    joined = re.sub(r"\\\n\s*", "", source)
    return re.sub(r"^!(.*)$", lambda line: f"shell(f{line[1]!r})", joined, flags=re.MULTILINE)


def script(path, parameters):
    """The whole notebook as one script, in which `parameters` come after the cell that is tagged so."""
    lines = [PRELUDE]
    for cell in cells(path, "code"):
        lines.append(in_python("".join(cell["source"])))
        if "parameters" in cell["metadata"].get("tags", ()):
            assert all(re.search(rf"\b{name}\b.*=", lines[-1]) for name in parameters)
            lines += [f"{name} = {value!r}" for name, value in parameters.items()]
    return "\n".join(lines)


def execute(_, text, place):
    """Run a script in a process of its own, in an empty folder."""
    os.chdir(place)
    exec(compile(text, "notebook", "exec"), {"__name__": "notebook"})


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_a_notebook_runs_from_top_to_bottom(path, tmp_path):
    on_ranks(execute, script(path, PARAMETERS[path.stem]), tmp_path, world=1)  # from a process that has imported torch
    for pattern in LEFT[path.stem]:
        assert len(list(tmp_path.glob(pattern))) == 1, pattern


@pytest.mark.slow
def test_a_cell_that_fails_is_an_error(tmp_path):
    with pytest.raises(Exception, match="inspect nowhere"):
        on_ranks(execute, PRELUDE + in_python("!{sys.executable} -m fastmfr inspect nowhere"), tmp_path, world=1)


def test_there_are_two_notebooks_and_toy_sizes_for_both():
    assert set(NAMES) == set(PARAMETERS) == set(LEFT) == {"quickstart", "own_data"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_outputs_are_not_stored(path):
    for cell in cells(path, "code"):
        assert (cell["outputs"], cell["execution_count"]) == ([], None)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_a_notebook_has_the_shape_that_jupyter_reads(path):
    book = json.loads(path.read_text())
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in book["cells"]]
    assert len(set(ids)) == len(ids) > 8
    assert "".join(book["cells"][0]["source"]).startswith("# ")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_links_lead_somewhere(path):
    links = [link for cell in cells(path, "markdown") for link in re.findall(r"\]\((\S+?)\)", "".join(cell["source"]))]
    assert links
    assert [link for link in links if not (path.parent / link).exists()] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_the_site_has_a_page_of_each_notebook(path):
    page = generate.notebook_page(path)
    for cell in cells(path, "markdown"):
        assert "".join(cell["source"]).split("](")[0] in page
    for cell in cells(path, "code"):
        assert f"```python\n{''.join(cell['source'])}\n```" in page
    assert f"({path.name})" in page
    assert f"notebooks/{path.stem}.md" in str(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])


def test_a_shell_line_becomes_a_call():
    assert in_python("x = 1\n!{py} -m a \\\n   b {x}\ny") == "x = 1\nshell(f'{py} -m a b {x}')\ny"
