"""Pictures of optimizers' paths."""
