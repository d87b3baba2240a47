"""The article's last example: a two-layer net, and the lr it prints as it trains.

As written there but for the imports and a seed.
"""

# ruff: noqa: D101, RET504

import torch

from steprule.lr_scheduler import scheduler_first as lr_scheduler

torch.manual_seed(0)


class TwoLayerNet(torch.nn.Module):
    def __init__(self, D_in, H, D_out):  # noqa: N803
        """
        In the constructor we instantiate two nn.Linear modules and assign them as
        member variables.
        """
        super(TwoLayerNet, self).__init__()  # noqa: UP008
        self.linear1 = torch.nn.Linear(D_in, H)
        self.linear2 = torch.nn.Linear(H, D_out)

    def forward(self, x):
        """
        In the forward function we accept a Tensor of input data and we must return
        a Tensor of output data. We can use Modules defined in the constructor as
        well as arbitrary operators on Tensors.
        """
        h_relu = self.linear1(x).clamp(min=0)
        y_pred = self.linear2(h_relu)
        return y_pred


N, D_in, H, D_out = 64, 1000, 100, 10
x = torch.randn(N, D_in)
y = torch.randn(N, D_out)

# Construct our model by instantiating the class defined above
model = TwoLayerNet(D_in, H, D_out)
criterion = torch.nn.MSELoss(reduction="sum")
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
print("learning rate: {}".format(optimizer.param_groups[0]["lr"]))
print("weight decay: {}".format(optimizer.param_groups[0]["weight_decay"]))

# scheduler = lr_scheduler.StepLR(optimizer, step_size=50, gamma=0.5)
# scheduler = lr_scheduler.MultiStepLR(optimizer, [50, 100], 0.5)
gamma = 0.9
scheduler = lr_scheduler.ExponentialLR(optimizer, gamma=gamma)
for t in range(200):
    # Forward pass: Compute predicted y by passing x to the model
    y_pred = model(x)
    # Compute and print loss
    scheduler.step()
    loss = criterion(y_pred, y)
    if t % 25 == 0:
        print(t, loss.item())
        print("t:", t, scheduler.get_lr()[0])
        print("learning rate: {}".format(optimizer.param_groups[0]["lr"]))
        print(1e-3 * gamma**t)
        # print('weight decay: {}'.format(optimizer.param_groups[0]['weight_decay']))
    # Zero gradients, perform a backward pass, and update the weights.
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
