"""How Sphinx builds the documentation."""

from __future__ import annotations

from importlib.metadata import version as installed_version

project = "sqla_jobs"
author = "The sqla_jobs authors"
copyright = "2026, The sqla_jobs authors"  # noqa: A001 (Sphinx's name)
release = version = installed_version("sqla-jobs")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinxcontrib.mermaid",
]
exclude_patterns = ["_build", "examples"]
html_theme = "furo"
html_title = "sqla_jobs"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
# ```mermaid is a diagram here as it is on code hosts.
myst_fence_as_directive = ["mermaid"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
# Docstrings write `names` in single backticks; they are code, not references.
default_role = "code"

# Other projects' objects: their inventories would need the network.
nitpick_ignore_regex = [
    ("py:.*", r"(sqlalchemy|alembic|psycopg|typing|typing_extensions)\..*"),
    (
        "py:.*",
        r"(collections|datetime|types|uuid|logging|asyncio|contextlib)\..*",
    ),
    ("py:.*", r"pathlib\..*|CommandError"),
    ("py:class", r"(bool|bytes|dict|float|int|list|object|set|str|tuple|type|None)"),
    (
        "py:(class|exc)",
        r"(Base)?(Exception|TypeError|ValueError|RuntimeError)",
    ),
    # Names under TYPE_CHECKING, aliases and type variables.
    ("py:class", r"(AsyncSession|async_sessionmaker|sessionmaker|Around|OnError|URL)"),
    ("py:class", r"(AnySession|async_scoped_session|Session|Queues)"),
    ("py:class", r"ColumnExpressionArgument|sqla_jobs\._store\.queues\.Unset"),
    ("py:class", r"sqla_jobs\.(models\.arg\.T|_hooks\._Maker|testing\._\w+\.\w+)"),
    ("py:class", r"Setting"),  # an alias; its page says what it is
    ("py:class", r"(Any|Self|T|datetime|timedelta|Callable|Iterator|Mapping|Sequence)"),
]
