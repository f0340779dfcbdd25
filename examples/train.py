"""psring's strategies in a training script of your own; every worker ends with the weights of one process.

python examples/train.py local weights.pt
mpirun -n 3 python examples/train.py parameter_server weights.pt  # 2 workers, 1 server
mpirun -n 2 python examples/train.py ring_allreduce weights.pt
"""

import sys

import torch
from torch import nn

import strategies

name, path = sys.argv[1:]
STEPS = 20
with strategies.create(name, num_servers=1 if name == "parameter_server" else 0) as strategy:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(3, 16, 3), nn.GELU(), nn.Flatten(), nn.Linear(96, 10))
    model[0].bias.requires_grad_(False)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=STEPS, cycle_momentum=False)
    model = strategy.prepare(model, optimizer)
    if strategy.is_server:
        strategy.serve()  # until the workers are done
    else:
        data = torch.Generator().manual_seed(1)
        for _ in range(STEPS):
            x = torch.randn(32, 3, 8, generator=data)[strategy.worker :: strategy.num_workers]
            loss = nn.functional.cross_entropy(model(x), x.flatten(1).argmax(1) % 10)
            loss.backward()
            strategy.synchronize()
            strategy.step()
            scheduler.step()
        print(f"worker {strategy.worker} of {strategy.num_workers}: loss {loss.item():.3f}", flush=True)
        torch.save(model.state_dict(), f"{path}.{strategy.worker}")
