"""What the ranks of ``processes.py`` are told to do: modules that need no pytest."""
