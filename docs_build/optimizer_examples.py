"""The example of each optimizer's page: a few steps, as a script has them."""

from __future__ import annotations

import inspect

from steprule.rules import OPTIMIZERS

_USUAL = """\
import torch
import steprule as optim

net = torch.nn.Linear(8, 2)
optimizer = optim.{name}(net.parameters(), lr={lr!r}{more})

input, target = torch.randn(16, 8), torch.randn(16, 2)
for _ in range(5):
    optimizer.zero_grad()
    loss = torch.nn.functional.mse_loss(net(input), target)
    loss.backward()
    optimizer.step()"""
_MORE = {"sgd": ", momentum=0.9", "lion": ", weight_decay=0.1", "lamb": ", weight_decay=0.01"}
_SPECIAL = {
    "lbfgs": """\
import torch
import steprule as optim

net = torch.nn.Linear(8, 2)
optimizer = optim.LBFGS(net.parameters(), line_search_fn="more_thuente")
input, target = torch.randn(16, 8), torch.randn(16, 2)

def closure():
    optimizer.zero_grad()
    loss = torch.nn.functional.mse_loss(net(input), target)
    loss.backward()
    return loss

for _ in range(5):
    loss = optimizer.step(closure)""",
    "sparseadam": """\
import torch
import steprule as optim

words = torch.nn.Embedding(1000, 16, sparse=True)
optimizer = optim.SparseAdam(words.parameters(), lr=1e-3)

for _ in range(5):
    optimizer.zero_grad()
    loss = words(torch.randint(1000, (32,))).square().mean()
    loss.backward()
    optimizer.step()  # the rows of words that came up""",
    "muon": """\
import torch
import steprule as optim

net = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
hidden = [net[0].weight]
others = [p for p in net.parameters() if p is not net[0].weight]
optimizer = optim.combine(optim.Muon(hidden, lr=0.02), optim.AdamW(others, lr=3e-4))

input, target = torch.randn(16, 8), torch.randn(16, 2)
for _ in range(5):
    optimizer.zero_grad()
    loss = torch.nn.functional.mse_loss(net(input), target)
    loss.backward()
    optimizer.step()""",
    "sophiag": """\
import torch
import steprule as optim

net = torch.nn.Linear(8, 3)
optimizer = optim.SophiaG(net.parameters(), lr=1e-3, bs=16)

input, label = torch.randn(16, 8), torch.randint(3, (16,))
for step in range(20):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(net(input), label).backward()
    optimizer.step()
    if step % 10 == 0:  # the curvature, of labels that the model itself draws
        optimizer.zero_grad()
        logits = net(input)
        drawn = torch.distributions.Categorical(logits=logits).sample()
        torch.nn.functional.cross_entropy(logits, drawn).backward()
        optimizer.update_hessian()""",
}
_SCHEDULE_FREE = """

net.eval()
optimizer.eval()  # the averages: what to validate and save
print(torch.nn.functional.mse_loss(net(input), target).item())
net.train()
optimizer.train()"""


def example_of(name: str) -> str:
    """Return the example of an optimizer, by its name in the registry."""
    if name in _SPECIAL:
        return _SPECIAL[name]
    cls = OPTIMIZERS[name]
    lr = inspect.signature(cls).parameters["lr"].default
    text = _USUAL.format(name=cls.__name__, lr=lr, more=_MORE.get(name, ""))
    return text + _SCHEDULE_FREE if name.startswith("schedulefree") else text
