"""Parameters updated by one replay of the recording over lists, ``torch._foreach_*``."""

from __future__ import annotations

import functools
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from steprule.engines.foreach.fused_operations import Instruction, instructions_of
from steprule.engines.foreach.replay import Replay
from steprule.engines.stages import Share, Stages, Totals, as_tensor, run_through
from steprule.engines.tensor_vocabulary import VOCABULARY
from steprule.formats.floating import FLOATING, compute_dtype, real_view
from steprule.formats.storage import Storage
from steprule.language.form import Form
from steprule.language.recording import (
    Value,
)

TensorList = list[Tensor]


class Bucket:
    """Parameters that share their numbers, of one dtype and on one device.

    Args:
        form: the form of all.
        params: the parameters.
        states: the state of each.
        grad_dtypes: the dtypes of the gradients that each will be updated with.
        groups: the group of each, for sums over several parameters.
        storage: of all.
        random_keys: of each, where something is rounded at random.
    """

    def __init__(
        self,
        form: Form,
        params: TensorList,
        states: Sequence[Mapping[str, Any]],
        grad_dtypes: Sequence[torch.dtype],
        groups: Sequence[int],
        storage: Storage,
        random_keys: Sequence[int],
    ) -> None:
        self._form, self._recording = form, form.recording()
        self._groups = groups
        self._storage, self._random_keys = storage, random_keys
        self._params, self._states = params, states
        self.dtype = params[0].dtype
        self._compute = compute = compute_dtype(params[0])
        self._arrays = {
            "param": params,
            **{name: [state[name] for state in states] for name in form.array_slots},
        }
        self._scalar_slots = {name: [state[name] for state in states] for name in form.scalar_slots}
        # What is used as it is, and what is read and written as its format has it.
        plain = {name: storage[name] == FLOATING[compute] for name in self._arrays}
        self._is_plain = {**plain, "grad": all(dtype is compute for dtype in grad_dtypes)}
        # What is stored will be written anyway: at its last use it is as good as a temporary. A
        # gradient is not, unless what is read is a copy.
        inputs = {**self._recording.array_inputs, **self._recording.each_inputs}
        self._inputs = inputs
        self._owned = {inputs[name] for name in self._arrays if inputs[name].is_array}
        if all(dtype.to_real() != compute for dtype in grad_dtypes):
            self._owned.add(inputs["grad"])
        self._is_kept = {
            name: self._recording.outputs[name] == inputs[name] for name in self._arrays
        }

    def update(self, grads: TensorList, scalars: Mapping[str, Any]) -> None:
        """Update parameters and slots; step counts are the caller's.

        Args:
            grads: of the same dtypes as those of the leaves that the bucket was made of.
            scalars: the numbers of all.
        """
        run_through(self.stages(grads, scalars))

    def stages(self, grads: TensorList, scalars: Mapping[str, Any]) -> Stages:
        """Update parameters and slots, as :meth:`update`."""
        recording, compute, names = self._recording, self._compute, self._arrays.keys()
        VOCABULARY.dtype = compute
        values: dict[Value, Any] = recording.scalars(scalars)
        for name, tensors in self._arrays.items():
            values[self._inputs[name]] = tensors if self._is_plain[name] else self._read(name)
        values[self._inputs["grad"]] = (
            grads
            if self._is_plain["grad"]
            else [t if t.dtype is compute else real_view(t).to(compute) for t in grads]
        )
        homes = {self._inputs[name]: name for name in names}
        instructions = _instructions(self._form)
        kept = {x for x in recording.outputs.values() if isinstance(x, Value)}
        replay = Replay(instructions, kept, values, set(self._owned), homes, compute)
        yield from replay.run(recording.shared_keys, self._total)
        # What lies in the memory of another output would be overwritten when that one is stored.
        for name in names:
            new = recording.outputs[name]
            if isinstance(new, Value) and homes.get(new, name) != name:
                values[new] = [tensor.clone() for tensor in values[new]]
        for name, tensors in self._arrays.items():
            if self._is_kept[name]:
                continue
            made = _as_list(values, recording.outputs[name], len(tensors), compute)
            if made is tensors:  # all was updated in place
                continue
            for i, (target, value) in enumerate(zip(tensors, made, strict=True)):
                if value is not target:  # it was not updated in place
                    param, state, key = self._params[i], self._states[i], self._random_keys[i]
                    self._storage.write(name, param, state, value, key)
        for name, tensors in self._scalar_slots.items():
            new = recording.outputs[name]
            made = values[new] if isinstance(new, Value) else new
            for i, tensor in enumerate(tensors):
                tensor.fill_(made[i] if isinstance(made, list) else made)

    def _read(self, name: str) -> TensorList:
        return [
            self._storage.read(name, param, state, self._compute)
            for param, state in zip(self._params, self._states, strict=True)
        ]

    def _total(self, key: int, own: TensorList) -> Generator[Sequence[Share], Totals, TensorList]:
        """Return for each tensor what they add up to with others, given what each adds."""
        elements = [real_view(param).numel() for param in self._params]
        totals = yield [Share(key, own, self._groups, elements)]
        return [
            as_tensor(totals[key][group], like)
            for group, like in zip(self._groups, own, strict=True)
        ]


def _as_list(
    values: dict[Value, Any], output: Value | float | None, count: int, compute: torch.dtype
) -> Any:
    value = values[output] if isinstance(output, Value) else output
    return value if isinstance(value, list) else [torch.tensor(value, dtype=compute)] * count


@functools.cache
def _instructions(form: Form) -> list[Instruction]:
    return instructions_of(form.recording())
