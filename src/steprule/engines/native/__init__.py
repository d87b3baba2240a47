"""Native loops over Python's and torch's own objects: what a thousand Python calls would take.

`tensor_layout.py` finds where torch keeps what in a tensor's memory; `loops_text.py` is the text of
the loops and `loops.py` compiles it. `address_guard.py` keeps what one kernel's tensors were like,
`contents_guard.py` what dicts and lists held, and `whole_step.py` puts them and the kernels into
one call. Whatever a loop does not find as expected is left to Python.
"""
