"""Kernels run over shares of their work on several threads."""
