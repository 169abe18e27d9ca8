"""The notebooks and docs/*.md as a static site, from committed outputs: `make book`, then open book/html/index.html.

Not Jupyter Book 2 / MyST: it needs node, and fetches its theme from the network when it builds.
"""

import shutil
from importlib.util import find_spec
from pathlib import Path

from docutils import nodes
from sphinx import addnodes

ROOT = Path(__file__).resolve().parents[1]
GITHUB = "https://github.com/clipdec/clipdec"
WIDGET = "application/vnd.jupyter.widget-view+json"
# Caption of a part of the contents, and its pages; a page is listed where it is first named.
PARTS = {
    "The course": ["notebooks/*"],
    "Reference": ["docs/symbols", "docs/*"],
    "Exercises": ["notebooks/exercises/*"],
    "Solutions": ["notebooks/solutions/*"],
}

project, author, project_copyright = "clipdec", "the clipdec developers", "the clipdec developers"
extensions = ["myst_nb"]
root_doc = "README"
include_patterns = ["README.md", "docs/*.md", "notebooks/**.ipynb"]
exclude_patterns = ["**/.ipynb_checkpoints"]
nb_execution_mode = "off"
nb_output_stderr = "warn"
nb_render_markdown_format = "myst"  # of outputs, as of cells: with tables and equations
nb_code_prompt_show, nb_code_prompt_hide = "Show the code", "Hide the code"
myst_enable_extensions = ["dollarmath", "amsmath", "html_image"]
myst_heading_anchors = 4
pygments_dark_style = "github-dark"

html_theme, html_title = "furo", "clipdec"
html_theme_options = {"source_repository": GITHUB, "source_branch": "main", "source_directory": ""}
html_theme_options |= {"top_of_page_buttons": ["view"]}  # on GitHub, where the theme would have it edited too
html_copy_source = html_show_sourcelink = False
html_static_path = ["book.css", str(Path(find_spec("sphinx-mathjax-offline").origin).parent / "static")]
html_css_files = ["book.css"]
html_favicon = "favicon.svg"
mathjax_path = "mathjax/tex-mml-chtml.js"  # from PyPI, fonts and all: no page asks another machine


def add_contents(app, docname, source):
    """README is the first page, and the contents stand at its end; from there the theme takes them for its sidebar."""
    if docname != root_doc:
        return
    source[0] += "\n\n## Contents\n"
    for caption, pages in PARTS.items():
        if any(path for page in pages for path in ROOT.glob(f"{page}.[mi]*")):  # .md, .ipynb
            entries = "\n".join(pages)
            source[0] += f"\n```{{toctree}}\n:caption: {caption}\n:maxdepth: 1\n:glob:\n\n{entries}\n```\n"


def point_to_github(app, doctree):
    """Links to files and folders of the repository that are no pages lead to GitHub."""
    for link in [*doctree.findall(addnodes.pending_xref), *doctree.findall(addnodes.download_reference)]:
        page = link.get("refdomain") == "doc"  # its target has no suffix, and is seen from the root
        if link.get("reftype") != "myst" or page and link["reftarget"] in app.env.found_docs:
            continue
        target, _, anchor = link["reftarget"].partition("#")
        place = Path(app.srcdir, "" if page else Path(link["refdoc"]).parent, f"{target}.md" if page else target).resolve()
        if target and place.exists():
            where = f"{GITHUB}/{'tree' if place.is_dir() else 'blob'}/main/{place.relative_to(ROOT).as_posix()}"
            where += f"#{anchor or link.get('reftargetid')}" if anchor or link.get("reftargetid") else ""
            link.replace_self(nodes.reference("", "", *link.children, refuri=where))


def set_outputs_right(app, doctree):
    """A picture gets the alternative text that stands beside it in the notebook; a widget, which needs a kernel, a note;
    the badge of Colab, a picture from elsewhere, its words.
    """
    for output in doctree.findall(lambda node: node.get("nb_element") == "mime_bundle" if isinstance(node, nodes.container) else False):
        kinds = {kind["mime_type"]: kind for kind in output.children}
        for image in output.findall(nodes.image):
            image["alt"] = kinds["text/plain"].astext()
        if WIDGET in kinds:
            note = nodes.paragraph(text="A widget stands here when the notebook runs.", classes=["widget"])
            kinds[WIDGET].children[:] = [note]
    for image in list(doctree.findall(nodes.image)):
        if "://" in image["uri"]:
            image.replace_self(nodes.inline(text=image["alt"], classes=["badge"]))


def name_the_first_page(app, error):
    """What a server, and a reader, opens first."""
    if error is None:
        shutil.copyfile(Path(app.outdir, f"{root_doc}.html"), Path(app.outdir, "index.html"))


def setup(app):
    app.connect("source-read", add_contents)
    app.connect("doctree-read", point_to_github, priority=100)  # before Sphinx collects files to download
    app.connect("doctree-read", set_outputs_right, priority=100)  # and pictures
    app.connect("build-finished", name_the_first_page)
