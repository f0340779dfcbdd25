"""Gossip averaging: workers on a ring train alone and average their weights with both neighbours in every step."""

import time

import numpy as np
import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from strategies.base import WorkerOptimizer
from strategies.closed_forms import Prediction
from strategies.volume import Volume


class Gossip(WorkerOptimizer):
    """D-PSGD (Lian et al., NeurIPS 2017): the mean of three workers' weights, then the own gradient's update."""

    title, family = "gossip", "gossip"

    @staticmethod
    def closed_form(options, job):
        """Each worker sends all its weights to two neighbours, in fp32."""
        messages, nbytes = (2, 8 * job.num_parameters) if job.num_workers > 1 else (0, 0)
        return Prediction(Volume(nbytes, nbytes, messages, messages))

    def synchronize(self):
        """Exchange the weights and average them; the gradient stays."""
        if self.group.size == 1:
            return
        began, comm = time.perf_counter(), self.group.comm
        own = parameters_to_vector(self._parameters).detach().cpu().numpy()
        neighbours = [(comm.rank - 1) % comm.size, (comm.rank + 1) % comm.size]
        received = [np.empty_like(own) for _ in neighbours]
        for there, back, buffer in zip(neighbours, reversed(neighbours), received, strict=True):
            comm.Sendrecv(own, dest=there, recvbuf=buffer, source=back)
            self.counters.add(own.nbytes, own.nbytes, 1, 1)
        mean = torch.from_numpy((own + received[0] + received[1]) / 3)
        vector_to_parameters(mean.to(self._parameters[0].device), self._parameters)
        self.communication_s = time.perf_counter() - began
