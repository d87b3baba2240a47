"""Checkpoints: safetensors files without pickle, written whole or not at all."""
