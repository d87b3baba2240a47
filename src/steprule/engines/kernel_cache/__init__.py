"""Compiled kernels, in memory and on disk; what people are told while one is compiled."""
