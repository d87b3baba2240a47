"""The fused engine: one kernel for all parameters of a form, on the CPU."""
