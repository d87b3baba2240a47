"""Kinds of parameters that go by a word: biases, those of normalisation layers, 1-D ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from steprule.model_groups.named import NamedParam

_NORMS: tuple[type[nn.Module], ...] = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.modules.batchnorm._NormBase,  # of batches and of instances, lazy and synchronised ones too
)


def is_norm(module: nn.Module) -> bool:
    """Tell whether a module is a normalisation layer: one of torch's, or one named so."""
    return isinstance(module, _NORMS) or "norm" in type(module).__name__.lower()


def _is_bias(one: NamedParam) -> bool:
    last = one.name.rpartition(".")[2]
    return last == "bias" or last.startswith("bias_") or last.endswith("_bias")


def _is_of_norm(one: NamedParam) -> bool:
    if isinstance(one.owner, _NORMS):
        return True
    called = one.name.split(".")[-2:-1]
    named_so = is_norm(one.owner) or any("norm" in part.lower() for part in called)
    return named_so and one.param.ndim <= 1


#: What the words mean that stand for a kind, in place of a pattern.
KINDS: Mapping[str, Callable[[NamedParam], bool]] = {
    "bias": _is_bias,
    "norm": _is_of_norm,
    "1d": lambda one: one.param.ndim <= 1,
}
