"""Wrong calls: each line that ends with WRONG must be flagged by mypy and pyright, and no other."""

from __future__ import annotations

import torch
from torch import nn

import steprule as optim
from steprule import lr_scheduler, schedules

net = nn.Linear(2, 2)
params = [*net.parameters()]

optim.Adam(params, learning_rate=0.1)  # WRONG
optim.Adam(params, lr="0.1")  # WRONG
optim.Adam(params, betas=0.9)  # WRONG
optim.Adam(params, betas=(0.9, 0.99, 0.999))  # WRONG
optim.Adam(net)  # WRONG
optim.Adam()  # WRONG
optim.SGD(params, nesterov="yes")  # WRONG
optim.SGD(params, clip_gradnorm=1.0)  # WRONG
optim.SGD(params, on_nonfinite="ignore")  # WRONG
optim.SGD(params, clip_grad_norm_over="groups")  # WRONG
optim.SGD(params, param_rounding="random")  # WRONG
optim.SGD(params, state_format=torch.int8)  # WRONG
optim.SGD(params, cautious=1.5)  # WRONG
optim.SGD(params, lr=schedules.cosine)  # WRONG
optim.Muon(params, ns_method="fast")  # WRONG
optim.Shampoo(params, grafting="adamw")  # WRONG
optim.LBFGS(params, bounds=1.0)  # WRONG
optim.LBFGS(params).step()  # WRONG
optim.LBFGS(params).step(None)  # WRONG
optim.combine(optim.Muon(params), clip_grad_norms=1.0)  # WRONG
optim.combine([optim.Muon(params)])  # WRONG
optim.SAM(params)  # WRONG
optim.Lookahead(optim.SGD(params), k="5")  # WRONG
optim.param_groups(net.parameters())  # WRONG
optim.param_groups(net, decay=0.1)  # WRONG
optim.build_optimizer([], "adamw", ema=0.9)  # WRONG
optim.set_learning_rate(optim.SGD(params), "0.1")  # WRONG
optim.set_native_loops("off")  # WRONG
optim.save_training("run", net=net)  # WRONG
optim.load_training("run", model=net, keep=3)  # WRONG
optim.log_to("runs", optim.SGD(params))  # WRONG
optim.step_in_backward(net, optim.SGD(params))  # WRONG
optim.make_optimizer("lion", lr=0.1)  # WRONG
optim.Slot(sign=False)  # WRONG
optim.Range("low")  # WRONG
optim.warm(dtypes=3)  # WRONG
optim.Momentum(params)  # WRONG

optimizer = optim.SGD(params)
optimizer.step(1.0)  # WRONG
optimizer.step(lambda loss: loss)  # WRONG
print(optimizer.last_step.norm)  # WRONG
optimizer.save()  # WRONG
optimizer.load_state_dict(optimizer)  # WRONG
print(optimizer.explain().engines)  # WRONG

schedules.cosine(0.1, 0.0)  # WRONG
schedules.cosine(0.1, 0.0, step=10)  # WRONG
schedules.linear("0.1", 0.0, steps=10)  # WRONG
schedules.constant(0.1, per="batch")  # WRONG
schedules.constant(0.1).warm_up(5)  # WRONG
schedules.piecewise({0.5: "a"})  # WRONG
lr_scheduler.StepLR(optimizer)  # WRONG
lr_scheduler.StepLR(optimizer, step=3)  # WRONG
lr_scheduler.StepLR(net, 3)  # WRONG
lr_scheduler.scheduler_first.StepLR(optimizer, step=3)  # WRONG
lr_scheduler.CosineAnnealingLR(optimizer, T=3)  # WRONG
