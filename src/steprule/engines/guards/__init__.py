"""Guards: whether something still is as it was when a plan was made. Asked by ``holds()``."""
