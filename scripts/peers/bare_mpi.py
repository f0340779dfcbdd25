"""No parameter server, but what its messages, sums and updates cost in plain mpi4py, where all of them are sent.

Run under mpirun with one rank more than workers, the last of which serves. No model, no autograd, no hooks: each worker
sends its flat gradient in chunks, all receives are posted ahead, the server sums a chunk and updates it (torch's
fused SGD) as soon as both workers' are there, and sends it back at once. No bound: shared memory saves copies.
"""

from __future__ import annotations

import payload
import torch
from mpi4py import MPI

from bench.config import RunConfig

Chunks = list[torch.Tensor]


def chunks_of(config: RunConfig) -> Chunks:
    """A flat fp32 vector as long as the model, in chunks."""
    return list(torch.zeros(config.gpt.num_parameters).split(config.chunk_bytes // 4))


def buffer(chunk: torch.Tensor) -> list[object]:
    """What mpi4py moves."""
    return [chunk.view(torch.uint8).numpy(), MPI.BYTE]


def work(comm: MPI.Intracomm, config: RunConfig) -> None:
    """Push all, take all; the first worker reports its times."""
    server, gradients, weights = comm.size - 1, chunks_of(config), chunks_of(config)
    watch = payload.Stopwatch(config)
    for _ in range(config.total_steps):
        pulls = [comm.Irecv(buffer(chunk), server, tag) for tag, chunk in enumerate(weights)]
        pushes = [comm.Isend(buffer(chunk), server, tag) for tag, chunk in enumerate(gradients)]
        MPI.Request.Waitall(pushes + pulls)
        watch.step_ended()
    if comm.rank == 0:
        watch.report()


def serve(comm: MPI.Intracomm, config: RunConfig) -> None:
    """Sum, update and answer each chunk when the last worker's has come."""
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
        missing, answers = [len(workers)] * len(weights), []
        for _ in requests:
            tag = MPI.Request.Waitany(requests) // len(workers)
            missing[tag] -= 1
            if missing[tag] == 0:
                torch.add(pushed[0][tag], pushed[1][tag], out=gradient[tag]).mul_(1 / len(workers))
                updates[tag].step()
                answers += [comm.Isend(buffer(weights[tag]), worker, tag) for worker in workers]
        MPI.Request.Waitall(answers)


def main() -> None:
    """Be a worker or, as the last rank, the server."""
    config = RunConfig.model_validate_json(payload.arguments().config)
    torch.set_num_threads(1)
    comm = MPI.COMM_WORLD
    (serve if comm.rank == comm.size - 1 else work)(comm, config)


if __name__ == "__main__":
    main()
