"""Kernels as programs: compiled ahead of time or interpreted, kept on disk, and launched."""
