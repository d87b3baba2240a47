"""Parameters updated by one replay of the recording over lists, ``torch._foreach_*``."""

from __future__ import annotations

import functools
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from steprule.engines.engine import Leaf
from steprule.engines.foreach.fused_operations import Instruction, instructions_of
from steprule.engines.foreach.replay import Own, Replay
from steprule.engines.stages import Share, Stages, Totals, as_tensor, run_through
from steprule.engines.tensor_vocabulary import VOCABULARY
from steprule.formats.floating import FLOATING, compute_dtype, real_view
from steprule.language.form import Form
from steprule.language.passes import levels_of
from steprule.language.recording import OVER_SHARDS, Value
from steprule.matrix_ops.eigen import LABELS

TensorList = list[Tensor]


class Bucket:
    """Parameters that share their numbers, of one dtype and on one device.

    Args:
        form: the form of all.
        leaves: the parameters, of one storage; their gradients are not kept.
        grad_dtypes: the dtypes of the gradients that each will be updated with.
    """

    def __init__(
        self, form: Form, leaves: Sequence[Leaf], grad_dtypes: Sequence[torch.dtype]
    ) -> None:
        recording = form.recording()
        self._form, self._recording = form, recording
        self._groups = [leaf.group for leaf in leaves]
        self._labels = [leaf.label for leaf in leaves]
        self._numbers = [leaf.number for leaf in leaves]
        self._elements = [leaf.elements for leaf in leaves]
        keys = recording.shared_keys
        shared = recording.shared_reductions
        self._over_shards = {keys[x.result] for x in shared if x.over == OVER_SHARDS}
        self._storage = storage = leaves[0].storage
        self._random = [(leaf.random_key, leaf.region) for leaf in leaves]
        self._params = params = [leaf.param for leaf in leaves]
        self._states = states = [leaf.state for leaf in leaves]
        self.dtype = params[0].dtype
        self._compute = compute = compute_dtype(params[0])
        self._arrays: dict[str, TensorList] = {
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
        # But where other ranks may still refuse the step, nothing that is stored is touched.
        may_be_refused = bool(keys) and any(number >= 0 for number in self._numbers)
        self._owned = {
            inputs[name]
            for name in self._arrays
            if inputs[name].is_array and not (may_be_refused and self._is_plain[name])
        }
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
        VOCABULARY.dtype, LABELS.of = compute, self._labels
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
                    param, state, random = self._params[i], self._states[i], self._random[i]
                    self._storage.write(name, param, state, value, *random)
        for name, tensors in self._scalar_slots.items():
            new = recording.outputs[name]
            filled: Any = values[new] if isinstance(new, Value) else new
            for i, tensor in enumerate(tensors):
                tensor.fill_(filled[i] if isinstance(filled, list) else filled)

    def _read(self, name: str) -> TensorList:
        return [
            self._storage.read(name, param, state, self._compute)
            for param, state in zip(self._params, self._states, strict=True)
        ]

    def _total(
        self, own: Mapping[int, Own]
    ) -> Generator[Sequence[Share], Totals, Mapping[int, TensorList]]:
        """Return for each tensor what they add up to with others, given what each adds."""
        totals = yield [
            Share(key, values, self._groups, self._elements, self._numbers, [told] * len(values))
            for key, (values, told) in own.items()
        ]
        return {
            key: [
                as_tensor(totals[key][who], like)
                for who, like in zip(
                    self._numbers if key in self._over_shards else self._groups,
                    values,
                    strict=True,
                )
            ]
            for key, (values, _) in own.items()
        }


def _as_list(
    values: dict[Value, Any], output: Value | float | None, count: int, compute: torch.dtype
) -> Any:
    value = values[output] if isinstance(output, Value) else output
    return value if isinstance(value, list) else [torch.tensor(value, dtype=compute)] * count


@functools.cache
def _instructions(form: Form) -> list[Instruction]:
    """Return the instructions: of reductions that several share, those together that can be."""
    recording = form.recording()
    found = instructions_of(recording)
    shared = recording.shared_keys
    if len(shared) < 2:
        return found
    levels = levels_of(recording)
    return sorted(found, key=lambda one: (levels.get(one.result, 0), one.result not in shared))
