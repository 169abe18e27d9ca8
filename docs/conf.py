"""The notebooks and docs/*.md as a static site, from committed outputs: `make book`, then open book/html/index.html.

Not Jupyter Book 2 / MyST: it needs node, and fetches its theme from the network when it builds.
"""

import shutil
import tomllib
from importlib.util import find_spec
from pathlib import Path

from docutils import nodes
from sphinx import addnodes

ROOT = Path(__file__).resolve().parents[1]
GITHUB = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
WIDGET = "application/vnd.jupyter.widget-view+json"
# Caption of a part of the contents, and its pages; a page is listed where it is first named.
PARTS = {
    "The course": ["notebooks/*"],
    "Reference": ["docs/symbols", "docs/*"],
    "Exercises": ["notebooks/exercises/*"],
    "Solutions": ["notebooks/solutions/*"],
}

project, author, project_copyright = "clipdec", "the clipdec developers", "the clipdec developers"
extensions, nitpicky = ["myst_nb"], True
root_doc = "README"
include_patterns = ["README.md", "docs/*.md", "notebooks/**.ipynb"]
exclude_patterns = ["**/.ipynb_checkpoints"]
nb_execution_mode = "off"
nb_output_stderr = "warn"
nb_render_markdown_format = "myst"  # of outputs, as of cells: with tables and equations
nb_code_prompt_show, nb_code_prompt_hide = "Show the code", "Hide the code"
myst_enable_extensions = ["dollarmath", "amsmath", "html_image"]
myst_heading_anchors = 4
pygments_dark_style, highlight_language = "github-dark", "none"

html_theme, html_title = "furo", "clipdec"
html_theme_options = {"top_of_page_buttons": ["view"], "source_view_link": f"{GITHUB}/blob/main/{{filename}}"}
html_copy_source = html_show_sourcelink = html_use_index = False
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
        is_page = link.get("refdomain") == "doc"  # so MyST takes every .md: seen from the root, and without a suffix
        if link.get("reftype") != "myst" or is_page and link["reftarget"] in app.env.found_docs:
            continue
        target, _, anchor = link["reftarget"].partition("#")
        place = ROOT / f"{target}.md" if is_page else (ROOT / link["refdoc"]).parent / target
        if target and place.exists():
            where = f"{GITHUB}/{'tree' if place.is_dir() else 'blob'}/main/"
            where += place.resolve().relative_to(ROOT).as_posix()
            anchor = anchor or link.get("reftargetid")
            link.replace_self(nodes.reference("", "", *link.children, refuri=f"{where}#{anchor}" if anchor else where))


def set_outputs_right(app, doctree):
    """A picture gets the words that the notebook has in its place; a widget, which needs a kernel, a note."""
    for output in doctree.findall(nodes.container):
        kinds = {kind["mime_type"]: kind for kind in output if output.get("nb_element") == "mime_bundle"}
        for image in [image for kind in kinds.values() for image in kind.findall(nodes.image)]:
            image["alt"] = kinds["text/plain"].astext()  # MyST-NB reads no alternative text
        if WIDGET in kinds:
            note = "A widget stands here when the notebook runs."
            kinds[WIDGET].children = [nodes.paragraph("", note, classes=["widget"])]


def write_for_the_book(app, doctree):
    """The badge of Colab, a picture on another machine, becomes words; a solution is called so."""
    for image in list(doctree.findall(nodes.image)):
        if "://" in image["uri"]:
            image.replace_self(nodes.inline("", image.get("alt", ""), classes=["badge"]))
    if app.env.docname.startswith("notebooks/solutions/"):
        for text in next(doctree.findall(nodes.title)).findall(nodes.Text):
            text.parent.replace(text, nodes.Text(text.replace("Exercises", "Solutions")))


def name_the_first_page(app, error):
    """What a server, and a reader, opens first."""
    if error is None:
        shutil.copyfile(Path(app.outdir, f"{root_doc}.html"), Path(app.outdir, "index.html"))


def setup(app):
    app.connect("source-read", add_contents)
    for change in (point_to_github, set_outputs_right, write_for_the_book):
        app.connect("doctree-read", change, priority=100)  # before Sphinx collects titles, pictures and downloads
    app.connect("build-finished", name_the_first_page)
