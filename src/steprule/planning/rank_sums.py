"""What ranks add up in a step: of each sharded parameter a few sums, in one small vector."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from steprule.distributed.shards import Shard, replica_groups_of
from steprule.distributed.sums import all_reduce

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# Of some sharded parameters, by their numbers, what is here of a sum over their elements.
Part = tuple[Sequence[int], Sequence[Any] | Tensor]


class RefusedElsewhereError(RuntimeError):
    """Another rank could not take the step: nothing was changed here."""


class RankSums:
    """Adds up over ranks what each has of sums over the elements of sharded parameters.

    All that is asked for at once goes into one vector of float64: a row for each sum, with a number
    for each parameter that is spread over ranks, one row that says which of them have a gradient
    anywhere, and at the end how many ranks refuse the step. It is always as long, whatever this
    rank has of all that, so that a rank without a gradient, and one that has to refuse, take part
    as well. It is all-reduced once; where parameters are spread over several process groups (the
    dimensions of a mesh), once for each. Where ranks have replicas of all that (HSDP), two numbers
    of it go to those as well: so that all refuse alike.

    Args:
        shards: of an optimizer's parameters, those that are spread over ranks.
        rows: the most sums that are asked for at once.
    """

    def __init__(self, shards: Sequence[Shard], rows: int) -> None:
        self._rows = rows
        self._columns = {shard.number: i for i, shard in enumerate(shards)}
        self._numbers = 1 + max(shard.number for shard in shards)
        self._device = shards[0].local.device
        self._index = torch.tensor([*self._columns], device=self._device)
        of_group: dict[ProcessGroup, list[int]] = {}
        for i, shard in enumerate(shards):
            for group in shard.groups:
                of_group.setdefault(group, []).append(i)
        self._of_group = [
            (group, None if len(of_group) == 1 else torch.tensor(columns, device=self._device))
            for group, columns in of_group.items()
        ]
        self._replicas = replica_groups_of([shard.owner for shard in shards], of_group)
        self._presence = torch.zeros(0)
        #: The sum of the ranks' own numbers, when they last met.
        self.number = 0.0
        #: Whether the ranks have met in the step at hand, and how many refused it then.
        self.has_met, self.refusals = False, 0.0
        #: How often they have, in all steps.
        self.meetings = 0

    def summed(
        self,
        rows: Sequence[Sequence[Part]],
        largest: Collection[int] = (),
        number: float = 0.0,
    ) -> list[Sequence[float] | Tensor]:
        """Return each row's sums over all ranks, by the parameters' numbers.

        Args:
            rows: of each row, what is here of it: parameters with a gradient.
            largest: the rows of which the largest part is wanted, not the sum (parts are >= 0).
            number: one of no parameter, >= 0, whose sum is left in :attr:`number`.

        Returns:
            Of each row a list of numbers; a tensor where parameters are not on the CPU.

        Raises:
            RefusedElsewhereError: another rank can't take the step.
        """
        matrix = self._new_matrix()
        most = torch.zeros_like(matrix[: self._rows]) if largest else None
        for row, parts in enumerate(rows):
            for numbers, values in parts:
                columns = [self._columns[number] for number in numbers]
                given = torch.as_tensor(values, dtype=matrix.dtype).to(matrix.device)
                matrix[self._rows, columns] = 1.0
                if most is not None and row in largest:  # a nan is no largest: it is added
                    most[row, columns] = torch.where(given.isnan(), 0.0, given)
                    given = torch.where(given.isnan(), given, 0.0)
                matrix[row, columns] = given
        self.number = self._reduce(matrix, number=number)
        if most is not None:
            self._reduce_largest(most)
            matrix[: self._rows] += most
        whole = torch.zeros(self._rows + 1, self._numbers, dtype=matrix.dtype, device=matrix.device)
        whole[:, self._index] = matrix
        self._presence = whole[self._rows]
        found = whole[: len(rows)]
        return [*found] if found.device.type != "cpu" else found.tolist()

    def present(self) -> Tensor:
        """Return of each number whether the parameter had a gradient anywhere, 0 for no."""
        return self._presence

    @property
    def bytes(self) -> int:
        """The size of the vector."""
        return 8 * ((self._rows + 1) * len(self._columns) + 2)

    def refuse(self) -> None:
        """Let the other ranks know that this one can't take the step, where they wait for it."""
        self._reduce(self._new_matrix(), refused=1.0)

    def _new_matrix(self) -> Tensor:
        size = self._rows + 1, len(self._columns)
        return torch.zeros(size, dtype=torch.float64, device=self._device)

    def _reduce(self, matrix: Tensor, *, refused: float = 0.0, number: float = 0.0) -> float:
        """Add up over ranks, a number of no parameter as well; raises if another one refuses."""
        is_first = not self.has_met
        self.has_met = True
        self.meetings += 1
        tail = matrix.new_tensor([refused, number])
        for group, columns in self._of_group:
            part = matrix if columns is None else matrix[:, columns]
            vector = torch.cat([part.reshape(-1), tail])
            all_reduce(vector, [group])
            tail = vector[-2:]
            if columns is None:
                matrix.copy_(vector[:-2].view(matrix.shape))
            else:
                matrix[:, columns] = vector[:-2].view(part.shape)
        for group in self._replicas:  # they decide alike, and have the sums already
            all_reduce(tail, [group])
        self.refusals, total = tail.tolist()  # of a device they are waited for
        if self.refusals and not refused:
            raise self._refusal(self.refusals, is_first=is_first)
        return float(total)

    def _refusal(self, refusals: float, *, is_first: bool) -> RefusedElsewhereError:
        """Return what is raised where other ranks refuse, as they met first or later on."""
        if is_first:
            return RefusedElsewhereError(
                "another process of this job refused the step, with an error of its own: look "
                "there. Nothing was changed here"
            )
        return RefusedElsewhereError(
            "another process of this job failed in the midst of the step, with an error of its "
            "own: look there. This process's part may be half updated: go on from a checkpoint"
        )

    def _reduce_largest(self, most: Tensor) -> None:
        for group, columns in self._of_group:
            part = most if columns is None else most[:, columns]
            vector = part.reshape(-1)
            all_reduce(vector, [group], largest=True)
            if columns is None:
                most.copy_(vector.view(most.shape))
            else:
                most[:, columns] = vector.view(part.shape)
