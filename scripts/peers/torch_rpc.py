"""torch.distributed.rpc's synchronous parameter server, as PyTorch's documentation writes it.

https://pytorch.org/tutorials/intermediate/rpc_async_execution.html ("Batch-updating parameter server"): trainers send
their gradients and get the whole updated model back. Changed: the model, the source of gradients, and the
timeout (0, no timeout, no longer starts).
"""

from __future__ import annotations

import os
import socket
import threading

import payload
import torch
import torch.distributed.rpc as rpc
import torch.multiprocessing as mp
from torch import Tensor

from bench.config import RunConfig
from bench.rank.model import GPT

TIMEOUT_S = 120


class BatchUpdateParameterServer:
    """Averages the gradients of all trainers, updates the model, and replies to all at once."""

    def __init__(self, config: RunConfig) -> None:
        self.model = payload.model(config)
        self.lock = threading.Lock()
        self.future_model: torch.futures.Future[GPT] = torch.futures.Future()
        self.batch_update_size = config.num_workers
        self.curr_update_size = 0
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=payload.LEARNING_RATE, momentum=payload.MOMENTUM)
        for p in self.model.parameters():
            p.grad = torch.zeros_like(p)

    def get_model(self) -> GPT:
        """Return the model."""
        return self.model

    @staticmethod
    @rpc.functions.async_execution
    def update_and_fetch_model(
        ps_rref: rpc.RRef[BatchUpdateParameterServer], grads: list[Tensor]
    ) -> torch.futures.Future[GPT]:
        """Add one trainer's gradients; the last one's update the model and complete all replies."""
        self = ps_rref.local_value()
        with self.lock:
            self.curr_update_size += 1
            for p, g in zip(self.model.parameters(), grads, strict=True):
                p.grad += g
            fut = self.future_model
            if self.curr_update_size >= self.batch_update_size:
                for p in self.model.parameters():
                    p.grad /= self.batch_update_size
                self.curr_update_size = 0
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=False)
                fut.set_result(self.model)
                self.future_model = torch.futures.Future()
        return fut


def run_trainer(ps_rref: rpc.RRef[BatchUpdateParameterServer], config: RunConfig, worker: int) -> None:
    """Train one worker; the first prints its step times."""
    torch.set_num_threads(config.num_threads)
    gradients = payload.gradients(config, worker)
    m = ps_rref.rpc_sync().get_model()
    stopwatch = payload.Stopstopwatch(config)
    for step in range(config.total_steps):
        m = rpc.rpc_sync(
            ps_rref.owner(),
            BatchUpdateParameterServer.update_and_fetch_model,
            args=(ps_rref, gradients(m, step)),
        )
        stopwatch.step_ended()
    if worker == 0:
        stopwatch.report()


def run(rank: int, config: RunConfig, tcp: bool) -> None:
    """Run as the server (rank 0), or as a trainer that it calls."""
    # Without options PyTorch picks shared memory on one machine.
    transport = {"_transports": ["uv"], "_channels": ["basic"]} if tcp else {}
    options = rpc.TensorPipeRpcBackendOptions(num_worker_threads=16, rpc_timeout=TIMEOUT_S, **transport)
    world_size = config.num_workers + 1
    if rank != 0:
        rpc.init_rpc(f"trainer{rank}", rank=rank, world_size=world_size, rpc_backend_options=options)
    else:
        rpc.init_rpc("ps", rank=rank, world_size=world_size, rpc_backend_options=options)
        ps_rref = rpc.RRef(BatchUpdateParameterServer(config))
        futures = [
            rpc.rpc_async(f"trainer{worker + 1}", run_trainer, args=(ps_rref, config, worker))
            for worker in range(config.num_workers)
        ]
        torch.futures.wait_all(futures)
    rpc.shutdown()


if __name__ == "__main__":
    flags = payload.arguments()
    with socket.create_server(("127.0.0.1", 0)) as free:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free.getsockname()[1]))
    config = RunConfig.model_validate_json(flags.config)
    mp.spawn(run, args=(config, flags.tcp), nprocs=config.num_workers + 1)
