"""Many processes: what an iteration sends, as a model; and what sharded parameters cost a step.

    python benchmarks/distributed.py traffic
    torchrun --nproc-per-node 2 benchmarks/distributed.py times [--layers 200] [--width 128]

``traffic`` prints the table of docs/distributed.md: for each strategy the messages of an iteration
and the bytes that a rank sends, for 8 to 1024 ranks. ``tests/test_ranks_messages.py`` compares the
model with what 2 and 4 processes were seen to send.

``times`` prints how long a step of Adam takes on the parameters of FSDP2 layers, beside the same
shards as plain tensors and beside torch's optimizers, as ratios of bursts that take turns. A burst
is as long as its slowest rank; the best of each counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

MIB = 1 << 20


@dataclass(frozen=True)
class Layers:
    """A model of square layers without biases, and what passes through it.

    Attributes:
        count: of layers.
        width: their sides; a multiple of the number of ranks, so that nothing is padded.
        tokens: examples that each rank has in an iteration (under tensor parallelism, all share).
        itemsize: bytes of a weight, a gradient and an activation.
    """

    count: int
    width: int
    tokens: int
    itemsize: int

    @property
    def of_layer(self) -> int:
        """Elements of a layer."""
        return self.width**2

    @property
    def of_all(self) -> int:
        """Elements of all layers."""
        return self.count * self.of_layer


@dataclass(frozen=True)
class Messages:
    """So many messages of a kind, between so many ranks.

    Attributes:
        kind: of collective, or ``"send"``.
        count: how many in an iteration.
        elements: of one; of a gather or a scatter, the whole's.
        itemsize: bytes of an element.
        ranks: who takes part.
    """

    kind: str
    count: int
    elements: int
    itemsize: int
    ranks: int

    @property
    def sent(self) -> float:
        """Bytes that a rank sends, in rings: each part passes from rank to rank.

        An all-reduce is a reduce-scatter and an all-gather.
        """
        part = (self.ranks - 1) / self.ranks
        share = {
            "all-reduce": 2 * part,
            "all-gather": part,
            "reduce-scatter": part,
            "broadcast": 1.0,
            "send": 1.0,
        }[self.kind]
        return share * self.count * self.elements * self.itemsize

    @property
    def hops(self) -> int:
        """How often somebody has to wait for a neighbour."""
        ring = {"all-reduce": 2 * (self.ranks - 1), "send": 1}
        return self.count * ring.get(self.kind, self.ranks - 1)


def buckets(layers: Layers, first: int = MIB, others: int = 25 * MIB) -> list[int]:
    """Return how many layers each of DDP's messages has: full when it reaches so many bytes."""
    found, bytes_in = [0], 0
    for _ in range(layers.count):
        if bytes_in >= (first if len(found) == 1 else others):
            found.append(0)
            bytes_in = 0
        found[-1] += 1
        bytes_in += layers.of_layer * layers.itemsize
    return found


def ddp(layers: Layers, ranks: int) -> list[Messages]:
    """Everybody has all; gradients are averaged, in buckets."""
    return [
        Messages("all-reduce", 1, count * layers.of_layer, layers.itemsize, ranks)
        for count in buckets(layers)
    ]


def fsdp2(layers: Layers, ranks: int) -> list[Messages]:
    """Weights are gathered forwards and backwards, gradients averaged and scattered, by layers."""
    one = layers.of_layer, layers.itemsize, ranks
    return [
        Messages("all-gather", 2 * layers.count, *one),
        Messages("reduce-scatter", layers.count, *one),
    ]


def hsdp(layers: Layers, ranks: int, shards: int = 8) -> list[Messages]:
    """FSDP2 within groups of so many ranks; the shards' gradients are averaged across these."""
    across = ranks // shards
    found = fsdp2(layers, shards)
    if across > 1:
        part = layers.of_layer // shards
        found.append(Messages("all-reduce", layers.count, part, layers.itemsize, across))
    return found


def tensor_parallel(layers: Layers, ranks: int) -> list[Messages]:
    """Each pair of layers adds up its output forwards, and its input's gradient backwards.

    But for the first pair's: nobody asks for the gradient of the examples.
    """
    count = layers.count // 2 + layers.count // 2 - 1
    return [
        Messages("all-reduce", count, layers.tokens * layers.width, layers.itemsize, ranks),
    ]


def zero1(layers: Layers, ranks: int, at_once: int = 64 * MIB) -> list[Messages]:
    """DDP; each rank has the state of some layers, and sends these round after the step.

    In messages of at most so many bytes, or one layer of each rank, which are padded to the longest
    and have a mark of 16 bytes; or layer by layer, where padding would add more than a quarter.
    """
    bytes_of_one = layers.of_layer * layers.itemsize
    most = -(-layers.count // ranks)
    found = [*ddp(layers, ranks), *sums(layers.count, ranks)]
    if most * ranks > 1.25 * layers.count:
        alone = Messages("broadcast", layers.count, bytes_of_one, 1, ranks)
        return [*found, Messages("all-gather", 1, ranks, 1, ranks), alone]
    while most:
        together = min(most, max(1, at_once // ranks // bytes_of_one))
        found.append(Messages("all-gather", 1, ranks * (together * bytes_of_one + 16), 1, ranks))
        most -= together
    return found


def sums(
    params: int, ranks: int, *, rows: int = 1, levels: int = 1, replicas: int = 1
) -> list[Messages]:
    """What guards, and reductions of rules, add up over ranks: vectors of float64.

    Args:
        params: that are spread over the ranks.
        ranks: over how many.
        rows: sums that the rule asks for at once (guards need one row).
        levels: how often it asks in a step; one more for guards.
        replicas: how many ranks have the same shards (HSDP), and must decide alike.
    """
    found = [Messages("all-reduce", levels, (rows + 1) * params + 2, 8, ranks)]
    return found + ([Messages("all-reduce", levels, 2, 8, replicas)] if replicas > 1 else [])


def matrices(layers: Layers, ranks: int, itemsize: int = 4) -> list[Messages]:
    """What a rank sends for Muon on FSDP2's shards: to each owner its part, and results back.

    One message to each other rank each way, of the matrices of one owner; on average over ranks
    where these are not as many on each.

    Args:
        layers: the matrices.
        ranks: that share each.
        itemsize: bytes of a number of the iteration (float32, or bfloat16 where there is hardware).
    """
    part = layers.of_layer // ranks
    owned = layers.count / ranks
    peers = ranks - 1 if owned >= 1 else layers.count * (ranks - 1) / ranks
    each = round(max(owned, 1) * part)
    return [Messages("send", round(2 * peers), each, itemsize, ranks)]


def fsdp2_muon(layers: Layers, ranks: int) -> list[Messages]:
    """FSDP2, and Muon's matrices in the step, with the vector that says who has gradients."""
    return [
        *fsdp2(layers, ranks),
        *sums(layers.count, ranks),
        *matrices(layers, ranks, itemsize=2),
    ]


def fsdp2_clipped(layers: Layers, ranks: int) -> list[Messages]:
    """FSDP2, and a step with guards."""
    return [*fsdp2(layers, ranks), *sums(layers.count, ranks)]


STRATEGIES: dict[str, Callable[[Layers, int], list[Messages]]] = {
    "DDP": ddp,
    "FSDP2": fsdp2,
    "FSDP2, clipped": fsdp2_clipped,
    "FSDP2, Muon": fsdp2_muon,
    "HSDP, shards of 8": hsdp,
    "TP": tensor_parallel,
    "ZeRO-1": zero1,
}
#: Of some billion parameters, in bfloat16.
EXAMPLE = Layers(count=96, width=8192, tokens=4096, itemsize=2)


def traffic(layers: Layers = EXAMPLE, ranks: Iterable[int] = (8, 64, 512, 1024)) -> str:
    """Return the table, in Markdown."""
    of = list(ranks)
    lines = [
        "| | " + " | ".join(f"{n} ranks" for n in of) + " |",
        "|---|" + "---|" * len(of),
    ]
    for name, strategy in STRATEGIES.items():
        cells = []
        for n in of:
            sent = strategy(layers, n)
            count, gigabytes = sum(one.count for one in sent), sum(one.sent for one in sent) / 1e9
            cells.append(f"{count:,}; {gigabytes:.2f} GB; {sum(one.hops for one in sent):,}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


# What a step costs.


@dataclass
class Subject:
    """An optimizer that is timed.

    Attributes:
        name: in the table.
        of_shards: on FSDP2's parameters.
        of_plain: made alike, on the same shards as plain tensors.
    """

    name: str
    of_shards: Any
    of_plain: Any


def subjects(shards: Sequence[Any], plain: Callable[[], Sequence[Any]]) -> list[Subject]:
    """Make all optimizers: steprule's engines and formats, then torch's."""
    import torch

    import steprule

    ours: dict[str, dict[str, Any]] = {
        "fused": {"engine": "fused"},
        "foreach": {"engine": "foreach"},
        "eager": {"engine": "eager"},
        "fused, clip_grad_norm": {"engine": "fused", "clip_grad_norm": 1.0},
        "fused, bfloat16": {"engine": "fused", "state_format": "bfloat16"},
        "fused, int8": {"engine": "fused", "state_format": "int8", "state_format_min_size": 1},
        "fused, int4": {"engine": "fused", "state_format": "int4", "state_format_min_size": 1},
    }
    theirs: dict[str, dict[str, Any]] = {
        "torch": {},
        "torch, foreach": {"foreach": True},
        "torch, fused": {"fused": True},
    }
    made = [
        (name, cls, options)
        for cls, of_cls in ((steprule.Adam, ours), (torch.optim.Adam, theirs))
        for name, options in of_cls.items()
    ]
    return [
        Subject(name, cls(shards, lr=1e-4, **options), cls(plain(), lr=1e-4, **options))
        for name, cls, options in made
    ]


def burst(step: Callable[[], Any], steps: int) -> float:
    """Seconds a step of the slowest rank, over one burst."""
    import torch
    import torch.distributed as dist

    dist.barrier()
    begin = time.perf_counter()
    for _ in range(steps):
        step()
    taken = torch.tensor((time.perf_counter() - begin) / steps)
    dist.all_reduce(taken, dist.ReduceOp.MAX)
    return float(taken)


def times(layers: int, width: int, rounds: int, steps: int) -> None:
    """Print the table of steps."""
    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    dist.init_process_group("gloo")
    model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))
    for layer in model:
        fully_shard(layer)
    fully_shard(model)
    shards = list(model.parameters())
    for param in shards:
        param.grad = torch.randn_like(param) / width

    def plain() -> list[nn.Parameter]:
        made = []
        for param in shards:
            assert isinstance(param, DTensor)
            made.append(nn.Parameter(param.to_local().detach().clone()))
            grad: Any = param.grad
            made[-1].grad = grad.to_local().clone()
        return made

    timed = subjects(shards, plain)
    for one in timed:  # kernels are compiled, state is made
        for _ in range(3):
            one.of_shards.step()
            one.of_plain.step()
    best = {(one.name, side): float("inf") for one in timed for side in ("shards", "plain")}
    for _ in range(rounds):
        for one in timed:
            for side, optimizer in (("shards", one.of_shards), ("plain", one.of_plain)):
                key = one.name, side
                best[key] = min(best[key], burst(optimizer.step, steps))
    if dist.get_rank() == 0:
        size = dist.get_world_size()
        print(f"torch {torch.__version__}, {size} processes, {layers} layers of {width}x{width}")
        print(f"{'Adam':24} {'shards us':>10} {'plain us':>10} {'ratio':>7} {'torch foreach':>14}")
        foreach = best["torch, foreach", "shards"]
        for one in timed:
            of_shards, of_plain = best[one.name, "shards"], best[one.name, "plain"]
            print(
                f"{one.name:24} {of_shards * 1e6:10.0f} {of_plain * 1e6:10.0f} "
                f"{of_shards / of_plain:7.2f} {of_shards / foreach:14.3f}"
            )
        print("ratio: shards to plain; torch foreach: shards to torch's foreach on shards")
    dist.destroy_process_group()


def main() -> None:
    """Print one of the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("table", choices=("traffic", "times"))
    parser.add_argument("--layers", type=int, default=200)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()
    if options.table == "traffic":
        print(traffic())
    else:
        times(options.layers, options.width, options.rounds, options.steps)


if __name__ == "__main__":
    main()
