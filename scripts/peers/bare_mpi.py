"""The messages, sums and updates of a parameter server in plain mpi4py: a baseline for its overhead.

Run under mpirun with one rank more than workers; the last rank is the server. Without model, autograd and hooks: each
worker sends its flat gradient in chunks, all receives are posted ahead, the server sums a chunk, updates it (torch's
fused SGD) as soon as both workers' have arrived, and sends it back. It is no lower bound: shared memory saves copies.
"""

from __future__ import annotations

import payload
import torch
from mpi4py import MPI

from bench.config import RunConfig

Chunks = list[torch.Tensor]


def chunks_of(config: RunConfig) -> Chunks:
    """Return a flat fp32 vector of the model's size, in chunks."""
    return list(torch.zeros(config.gpt.num_parameters).split(config.chunk_bytes // 4))


def buffer(chunk: torch.Tensor) -> list[object]:
    """Return the buffer argument of mpi4py for a chunk."""
    return [chunk.view(torch.uint8).numpy(), MPI.BYTE]


def work(comm: MPI.Intracomm, config: RunConfig) -> None:
    """Push all chunks and receive all updated ones, every step; the first worker prints its step times."""
    server, gradients, weights = comm.size - 1, chunks_of(config), chunks_of(config)
    stopwatch = payload.Stopstopwatch(config)
    for _ in range(config.total_steps):
        pulls = [comm.Irecv(buffer(chunk), server, tag) for tag, chunk in enumerate(weights)]
        pushes = [comm.Isend(buffer(chunk), server, tag) for tag, chunk in enumerate(gradients)]
        MPI.Request.Waitall(pushes + pulls)
        stopwatch.step_ended()
    if comm.rank == 0:
        stopwatch.report()


def serve(comm: MPI.Intracomm, config: RunConfig) -> None:
    """Sum, update and return each chunk when the last worker's has arrived."""
    workers, weights, gradient = range(comm.size - 1), chunks_of(config), chunks_of(config)
    pushed = [chunks_of(config) for _ in workers]
    updates = []
    for chunk, its_gradient in zip(weights, gradient, strict=True):
        parameter = torch.nn.Parameter(chunk, requires_grad=False)
        parameter.grad = its_gradient
        updates.append(torch.optim.SGD([parameter], payload.LEARNING_RATE, payload.MOMENTUM, fused=True))
    for _ in range(config.total_steps):
        requests = [comm.Irecv(buffer(c), w, tag) for tag in range(len(weights)) for w, c in
                    ((worker, pushed[worker][tag]) for worker in workers)]  # fmt: skip
        missing, replies = [len(workers)] * len(weights), []
        for _ in requests:
            tag = MPI.Request.Waitany(requests) // len(workers)
            missing[tag] -= 1
            if missing[tag] == 0:
                torch.add(pushed[0][tag], pushed[1][tag], out=gradient[tag]).mul_(1 / len(workers))
                updates[tag].step()
                replies += [comm.Isend(buffer(weights[tag]), worker, tag) for worker in workers]
        MPI.Request.Waitall(replies)


def main() -> None:
    """Run as a worker or, on the last rank, as the server."""
    config = RunConfig.model_validate_json(payload.arguments().config)
    torch.set_num_threads(1)
    comm = MPI.COMM_WORLD
    (serve if comm.rank == comm.size - 1 else work)(comm, config)


if __name__ == "__main__":
    main()
