"""The article's schedules in today's order: train with an lr, then step the scheduler.

Each epoch trains with the value the article gives for it; the schedule can be seen beforehand.
"""

import torch

from steprule.lr_scheduler import LambdaLR, MultiStepLR, StepLR

BUILDERS = {
    "StepLR": lambda optimizer: StepLR(optimizer, step_size=30, gamma=0.1),
    "MultiStepLR": lambda optimizer: MultiStepLR(optimizer, [30, 80], 0.1),
    "LambdaLR": lambda optimizer: LambdaLR(optimizer, lambda epoch: 0.95**epoch),
}

for name, build in BUILDERS.items():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.05)
    scheduler = build(optimizer)
    foreseen = [scheduler.lr_at(epoch) for epoch in range(100)]
    for epoch in range(100):
        used = [group["lr"] for group in optimizer.param_groups]
        assert used == foreseen[epoch]
        if epoch % 10 == 0:
            print(name, epoch, f"lr={used[0]:.6f}")
        optimizer.step()
        scheduler.step()
