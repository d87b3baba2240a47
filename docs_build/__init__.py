"""Makes pages of the documentation site: from docstrings, rules, examples and notebooks.

Each module with a function ``files()`` gives pages and pictures: a dict from a path in the site's
source (``optimizers/adam.md``) to its content. :mod:`docs_build.hooks` collects them for mkdocs.
"""
