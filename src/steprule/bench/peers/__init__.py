"""Other libraries' steps, timed in the same tables where they are installed."""

from __future__ import annotations

from collections.abc import Mapping

from steprule.bench.peers.compiled import COMPILED
from steprule.bench.peers.deepspeed_adam import DEEPSPEED
from steprule.bench.peers.optax_jit import OPTAX
from steprule.bench.peers.peer import Peer

__all__ = ["PEERS", "Peer"]

PEERS: Mapping[str, Peer] = {peer.name: peer for peer in (COMPILED, OPTAX, DEEPSPEED)}
