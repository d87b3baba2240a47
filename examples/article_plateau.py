"""The article's ReduceLROnPlateau example.

As written there but for the imports and typing slips (`ReducelROnPlateau`, `args.start epoch`),
and for what it leaves to the reader: the model, the arguments, `train` and `validate`, whose
loss improves for three epochs and then stays.
"""

# ruff: noqa: ARG001, D103

from types import SimpleNamespace

import torch

from steprule.lr_scheduler import ReduceLROnPlateau

args = SimpleNamespace(lr=0.1, momentum=0.9, weight_decay=1e-4, start_epoch=0, epochs=30)
model = torch.nn.Linear(4, 1)
criterion = torch.nn.MSELoss()
train_loader = val_loader = [(torch.ones(2, 4), torch.zeros(2, 1))]


def train(train_loader, model, criterion, optimizer, epoch):
    for x, y in train_loader:
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()


def validate(val_loader, model, criterion, epoch):
    return None, 1.0 / min(epoch + 1, 3)


optimizer = torch.optim.SGD(
    model.parameters(), args.lr, momentum=args.momentum, weight_decay=args.weight_decay
)
scheduler = ReduceLROnPlateau(optimizer, "min", verbose=True)
for epoch in range(args.start_epoch, args.epochs):
    train(train_loader, model, criterion, optimizer, epoch)
    result_avg, loss_val = validate(val_loader, model, criterion, epoch)
    # Note that step should be called after validate()
    scheduler.step(loss_val)
