"""The eager engine: the rule on tensors, one parameter at a time."""
