"""The parts of an optimizer's page, one module each; optimizer_pages.py puts them together."""
