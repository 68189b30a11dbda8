"""Commands answer --help at once, so what they import leaves out the libraries that take seconds to import."""

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "matplotlib", "nvidia"}
MODULES = (
    "config",
    "decode",
    "decode.encoded",
    "domains",
    "image_set",
    "inspect",
    "inspect.sheet",
    "inspect.text",
    "native",
    "pack",
    "pack.build",
    "pack.sources",
    "protocols",
    "protocols.drawing",
    "sampler",
    "synthetic",
)
# each module is imported with none of fastmfr's modules loaded, as in a new process
SCRIPT = """
import importlib, json, sys

found = {}
for name in sys.argv[1:]:
    for loaded in [loaded for loaded in sys.modules if loaded.partition(".")[0] == "fastmfr"]:
        if loaded != "fastmfr._native":
            del sys.modules[loaded]
    before = set(sys.modules)
    importlib.import_module("fastmfr." + name)
    found[name] = sorted({loaded.partition(".")[0] for loaded in set(sys.modules) - before})
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def imported():
    """{module: the top-level packages that its import adds}; a package counts for the first module that needs it."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, *MODULES], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("module", MODULES)
def test_importing_it_leaves_the_heavy_libraries_out(imported, module):
    assert not HEAVY & set(imported[module])
