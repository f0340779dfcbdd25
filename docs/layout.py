"""MkDocs hook: the site has the repository's own layout, so that a link works in both."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

REPOSITORY = Path(__file__).parent.parent
FIRST = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "results/README.md")
LINK = re.compile(r"\]\(([^)\s#:]+)[^)]*\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace the files of docs/ by those pages, the first ones, and every file of the repository that they link to."""
    for file in [file for file in files if file.src_dir == config.docs_dir]:
        files.remove(file)
    todo = [REPOSITORY / name for name in FIRST] + sorted((REPOSITORY / "docs").glob("*.md"))
    while todo:
        path = todo.pop()
        name = path.relative_to(REPOSITORY).as_posix()
        if name not in files.src_uris:
            files.append(File(name, str(REPOSITORY), config.site_dir, config.use_directory_urls))
            linked = LINK.findall(path.read_text()) if path.suffix == ".md" else []
            todo += [target for link in linked if (target := (path.parent / link).resolve()).is_file()]
    return files
