"""The documentation's site: `python3 Testing/run.py docs`. The pages of this folder, and the library's docstrings."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "IconRegistration"))

import IconRegistrationLib  # noqa: E402

project = "IconRegistration"
author = "IconRegistration developers"
release = version = IconRegistrationLib.__version__

extensions = ["myst_parser", "numpydoc", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.viewcode"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["build"]
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 4

autosummary_generate = True
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # numpydoc's sections name the types
autodoc_mock_imports = ["qt", "ctk"]  # Slicer's own; nothing else has them
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False
templates_path = ["_templates"]

html_theme = "pydata_sphinx_theme"
html_title = "IconRegistration"
html_logo = "../Resources/IconRegistration.png"
html_theme_options = {"navigation_with_keys": False, "show_toc_level": 2}

#: Where a page links to a file of the checkout that is no page of the site.
REPOSITORY = "https://github.com/SlicerIconRegistration/SlicerIconRegistration/blob/main"


def _link_to_the_repository(app, docname, source):
    """Turn a page's links to files outside of this folder into links to the repository."""

    def absolute(match):
        target = (ROOT / "docs" / Path(docname).parent / match[2]).resolve()
        inside = target.is_relative_to(ROOT / "docs")
        return match[0] if inside else f"]({REPOSITORY}/{target.relative_to(ROOT).as_posix()}{match[3] or ''})"

    source[0] = re.sub(r"(\]\()(\.\./[^)\s#]+)(#[^)\s]*)?\)", absolute, source[0])


def setup(app):
    """Called by Sphinx."""
    app.connect("source-read", _link_to_the_repository)
