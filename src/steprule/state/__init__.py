"""An optimizer's state: made, checked, written out and read back."""
