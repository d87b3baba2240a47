"""What the engines that print kernels share: the text of rules and formats, tables, the runner."""
