"""Steps within functions that ``torch.compile`` compiles."""
