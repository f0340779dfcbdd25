"""A ring-allreduce on mpi4py: Horovod's topology with the parameter server's buffers, dtypes and threads.

Against `ring_allreduce` it shows what the library costs, against `parameter_server` what the topology costs.
"""

from strategies.mpi_ring.worker import MPIRing

__all__ = ["MPIRing"]
