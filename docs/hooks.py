"""What the site's build adds to mkdocs: generated pages, recorded runs, and a package tree that holds the kernels."""

import re
import shutil
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))
import generate

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "build/package/fastmfr"
LOGS = ("CHANGELOG.md", "LOG.md", "CONTRIBUTING.md")
OUTSIDE = re.compile(r"\]\((?:\.\./)+([^)\s]+)\)")


def on_startup(**_: object) -> None:
    """Lay the package out as it is installed: kernels/ is fastmfr/kernels there, and docstrings are read from there."""
    shutil.rmtree(PACKAGE, ignore_errors=True)
    PACKAGE.mkdir(parents=True)
    for entry in (ROOT / "fastmfr").iterdir():
        if entry.name != "__pycache__":
            (PACKAGE / entry.name).symlink_to(entry)
    (PACKAGE / "kernels").symlink_to(ROOT / "kernels")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages made of the code, the logs of the repository, and every recorded run."""
    pages = {
        "options.md": generate.options_page(),
        "recipes.md": generate.recipes_page(),
        "recorded-runs.md": generate.results_page(),
    }
    notebooks = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))
    pages |= {f"notebooks/{path.stem}.md": generate.notebook_page(path) for path in notebooks}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    for name in LOGS:
        files.append(File.generated(config, name, content=_in_site((ROOT / name).read_text())))
    for path in sorted((ROOT / "bench/results").iterdir()):
        files.append(File.generated(config, f"bench/results/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Point links that leave docs/ for the repository at the copies in the site."""
    up = "../" * page.file.src_uri.count("/")
    return OUTSIDE.sub(lambda link: f"]({up}{_page(link[1])})", markdown)


def _page(target: str) -> str:
    """The place in the site of a file of the repository."""
    return {"bench/results": "recorded-runs.md", "README.md": "index.md"}.get(target.rstrip("/"), target)


def _in_site(markdown: str) -> str:
    """A file of the repository's root, whose links start there, as a page of the site."""
    return markdown.replace("](docs/", "](").replace("](bench/results)", "](recorded-runs.md)")
