"""Whole training runs, saved and loaded: models, optimizers, schedulers, random states."""
