"""What mkdocs needs beyond mkdocs.yml, so that the repository's pages are a site's pages too: each text stands once.

The README is the site's first page. Links that lead out of docs/ are followed: what they name is copied into the site,
where it lies as in the repository. docs/assets holds @mermaid-js/tiny 11.17.2, which draws the diagrams, and the shim
of iframe-worker 1.0.4, with which pages read from a disk can be searched; both as npm has them.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
BESIDE_DOCS = {
    "index.md": "README.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "assets/icon.svg": "src/worker_orcd/console/icon.svg",
}
"""What is on the site and lies beside docs/."""
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)[^)\s#]+")
_CODE = re.compile(r"`[^`\n]+`")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what lies beside docs/, and the files that pages link to."""
    for page, file in BESIDE_DOCS.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / file)))
    for page in files.documentation_pages():
        for link in _LINK.findall(page.content_string):
            place = _place(page.src_uri, link)
            if files.get_file_from_path(place) is None and (ROOT / place).is_file():
                files.append(File.generated(config, place, abs_src_path=str(ROOT / place)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001  # mkdocs' signature
    """Lead links to where things lie on the site, and say what GitHub says differently."""
    here = page.file.src_uri
    markdown = _CODE.sub(lambda code: code[0].replace("\\|", "|"), markdown)  # in a table's code
    return _LINK.sub(
        lambda link: posixpath.relpath(_place(here, link[0]), posixpath.dirname(here) or "."), markdown
    )


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:  # noqa: ARG001
    """Give pages with diagrams what draws them; the theme would fetch it from elsewhere."""
    if 'class="mermaid"' not in output:
        return output
    up = posixpath.relpath(".", posixpath.dirname(page.file.dest_uri) or ".")
    return output.replace("</body>", f'<script src="{up}/assets/mermaid.tiny.js"></script></body>')


def _place(page: str, link: str) -> str:
    """Where on the site a link leads to: docs/ is its top, and the README its first page."""
    folder = "." if page in BESIDE_DOCS else posixpath.join("docs", posixpath.dirname(page))
    path = posixpath.normpath(posixpath.join(folder, link))
    return "index.md" if path == "README.md" else path.removeprefix("docs/")
