"""A catalogue of bad calls: what is refused, with what message, and what to do instead.

`tests/test_errors.py` makes each of them; `docs/errors.md` is written from them, by
`python tests/error_cases/page.py > docs/errors.md`. A module here has `cases()`, and a line below.
"""
