"""The engine ``triton``: one launch for all tensors of a bucket, printed as Triton kernels.

The text of rules and formats is the CPU's (``engines/kernels/``); ``tile_language.py`` turns it
into Triton's, where a name stands for a tile of elements. ``update_text.py`` and
``reduction_text.py`` print the kernels round it; ``programs/`` compiles and launches them;
``runner.py`` keeps the tables on the device.
"""
