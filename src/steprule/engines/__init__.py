"""Engines: what runs a recorded rule on tensors. They know nothing of optimizers.

``engine.py`` is the contract, ``registry.py`` the list; each has a folder of its own, and what
they share lies beside: ``guards/``, ``printing.py``, ``compiler/``, ``threads/``, ``native/``.
"""
