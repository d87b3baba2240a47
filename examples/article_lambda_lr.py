"""The article's LambdaLR example, whose printed table comes out to the last digit.

As written there but for the imports, and for what it leaves to the reader: `net`, `train` and
`validate`. Its loop variable is `epoch` and it prints `i`; here both are `i`.
"""

# ruff: noqa: D103

import torch
import torch.optim as optim
from torch import nn

from steprule.lr_scheduler.scheduler_first import LambdaLR


class Net(nn.Module):
    """Two layers, of which the last has the article's name."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(4, 4)
        self.fc3 = nn.Linear(4, 1)

    def forward(self, x):
        return self.fc3(torch.relu(self.fc1(x)))


def train():
    optimizer.zero_grad()
    net(torch.ones(2, 4)).square().mean().backward()
    optimizer.step()


def validate():
    with torch.no_grad():
        return net(torch.ones(2, 4)).square().mean()


net = Net()

ignored_params = list(map(id, net.fc3.parameters()))
base_params = filter(lambda p: id(p) not in ignored_params, net.parameters())
optimizer = optim.SGD(
    [{"params": base_params}, {"params": net.fc3.parameters(), "lr": 0.001 * 100}],
    0.001,
    momentum=0.9,
    weight_decay=1e-4,
)
# Assuming optimizer has two groups.
lambda1 = lambda epoch: epoch // 3  # noqa: E731
lambda2 = lambda epoch: 0.95**epoch  # noqa: E731
scheduler = LambdaLR(optimizer, lr_lambda=[lambda1, lambda2])
for i in range(100):
    train()
    validate()
    scheduler.step()
    print("epoch: ", i, "lr: ", scheduler.get_lr())
