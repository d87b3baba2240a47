"""The article's StepLR, MultiStepLR and ExponentialLR examples, one after another.

As written there but for the imports: the loops step the scheduler first, so the schedulers come
from `scheduler_first`; and torchvision is not needed, so a small module stands in for AlexNet
(the schedules never look at the model).
"""

import matplotlib.pyplot as plt
import torch.optim as optim
from torch import nn

from steprule.lr_scheduler import scheduler_first as lr_scheduler


class AlexNet(nn.Module):
    """Stand-in for torchvision.models.AlexNet."""

    def __init__(self, num_classes):
        super().__init__()
        self.classifier = nn.Linear(8, num_classes)


model = AlexNet(num_classes=2)
optimizer = optim.SGD(params=model.parameters(), lr=0.05)

# lr_scheduler.StepLR()
# Assuming optimizer uses lr = 0.05 for all groups
# lr = 0.05     if epoch < 30
# lr = 0.005    if 30 <= epoch < 60
# lr = 0.0005   if 60 <= epoch < 90

scheduler = lr_scheduler.StepLR(optimizer, step_size=30, gamma=0.1)
plt.figure()
x = list(range(100))
y = []
for epoch in range(100):
    scheduler.step()
    lr = scheduler.get_lr()
    print(epoch, scheduler.get_lr()[0])
    y.append(scheduler.get_lr()[0])

plt.plot(x, y)

# ---------------------------------------------------------------
# lr_scheduler.MultiStepLR()
# Assuming optimizer uses lr = 0.05 for all groups
# lr = 0.05     if epoch < 30
# lr = 0.005    if 30 <= epoch < 80
# lr = 0.0005   if epoch >= 80
print()
plt.figure()
y.clear()
scheduler = lr_scheduler.MultiStepLR(optimizer, [30, 80], 0.1)
for epoch in range(100):
    scheduler.step()
    print(epoch, "lr={:.6f}".format(scheduler.get_lr()[0]))  # noqa: UP032
    y.append(scheduler.get_lr()[0])

plt.plot(x, y)
plt.show()

# ---------------------------------------------------------------
# lr_scheduler.ExponentialLR()
scheduler = lr_scheduler.ExponentialLR(optimizer, gamma=0.9)
print()
plt.figure()
y.clear()
for epoch in range(100):
    scheduler.step()
    print(epoch, "lr={:.6f}".format(scheduler.get_lr()[0]))  # noqa: UP032
    y.append(scheduler.get_lr()[0])

plt.plot(x, y)
plt.show()
