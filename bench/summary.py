"""Summary: what one run measured, a column each."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict

from strategies.options import Unit


class Summary(BaseModel):
    """The numbers of one run. Every blank is something that was not measured, never a zero."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    num_nodes: Annotated[int, Unit("hosts")]
    """Distinct hosts that ranks ran on; the maximum over launches."""
    num_parameters: Annotated[int, Unit("numbers")]
    """Trainable parameters of the GPT."""
    tokens_per_s: float
    """Tokens of all workers over the longest worker's time for all measured steps."""
    step_s: float
    """One optimizer step of the slowest worker, median over steps."""
    step_s_p95: float
    """One optimizer step of the slowest worker, 95th percentile over steps."""
    data_s: float
    """Fetching the batch; mean over workers and steps, as all phases."""
    forward_s: float
    """Forward pass and loss."""
    backward_s: float
    """Backward pass, with the communication that it hides."""
    exposed_communication_s: float
    """Waiting for communication and doing nothing else."""
    optimizer_s: float
    """Applying the update."""
    communication_s: float
    """All communication, exposed or hidden behind backward."""
    overlap_fraction: float | None = None
    """1 − exposed_communication_s / communication_s; blank for a lone process."""
    bubble_fraction_predicted: float | None = None
    """Share of a pipeline's time in which a stage has nothing to compute, in closed form: (P − 1)/(m + P − 1), P
    stages, m micro-batches; beside it exposed_communication_s over its sum with forward_s and backward_s is what was
    measured, with messages; blank without a pipeline."""
    first_loss: float | None = None
    """Training loss of the first step, warm-up included, over the global batch; blank, as all losses and `mfu`,
    where nothing was trained (`compute`)."""
    final_loss: float | None = None
    """Training loss of the last step over the global batch."""
    held_out_loss: float | None = None
    """Loss on held-out batches after the last step."""
    mfu: float | None = None
    """Model FLOPs utilisation: FLOPs the model needs over `peak_flops_per_s` of all workers; blank without a peak."""
    sleep_overshoot_s_p95: float | None = None
    """How late layers that were slept through ended, after their deadlines; 95th percentile over layers, measured
    steps and workers; blank without emulated compute. What delays them is mostly the run itself: a cost, no reason to
    reject it."""
    lateness_share: float | None = None
    """The same over step_s."""
    emulated_update_s: float | None = None
    """What one update of all weights took where compute is emulated: slept by every worker that runs the optimizer, and
    by every server in proportion to its shard; blank without emulated compute."""
    communication_compute_ratio: float | None = None
    """M/(B·T): sending one payload over the slowest worker's link, over forward and backward of a worker of speed 1;
    emulated compute on emulated nodes only."""
    scale_payload: float | None = None
    """Payload M of this run over its target's (`target`); blank without one, as the next two."""
    scale_link: float | None = None
    """The slowest worker's link over the target's."""
    scale_compute: float | None = None
    """Forward and backward of a worker of speed 1 over the target's."""
    allreduce_algorithm: str | None = None
    """What algorithm the allreduce library ran; `ring`; `any` for 2 ranks or fewer, where all algorithms send the
    same; `not_ring` where it was no ring at one message size or more, and its bytes are then unknown."""
    identified_bytes: str | None = None
    """Message sizes at which that was seen before the run, from the smallest gradient to the fullest buffer; only in
    `runs.jsonl` and `runs.csv`."""
    not_ring_bytes: str | None = None
    """Those of them at which the allreduce was no ring."""
    duplex_factor: float | None = None
    """Φ: how much longer the first and the last rank took to send each other a copy at once than one to send the
    other one, before the run, in messages of its size; 1 full duplex, 2 half; blank where MPI does not carry the
    gradients, and in all repeats of a cell but the first."""
    shard_imbalance: float | None = None
    """Λ: the most that a server holds over its share; 1 is balanced."""
    longest_wait_s: float | None = None
    """Exposed_communication_s of the worker that waited longest, mean over its steps."""
    server_wait_s: float | None = None
    """Time per step in which a dedicated server had no message to handle, from its first gradient to its last, warm-up
    included; mean over servers; blank without one."""
    mean_staleness: Annotated[float | None, Unit("updates")] = None
    """Updates of other workers that the mean update's gradient did not know (asp, ssp)."""
    staleness_histogram: str | None = None
    """Staleness:updates, over all servers and chunks (asp, ssp); only in `runs.jsonl` and `runs.csv`."""
    largest_lead: Annotated[int | None, Unit("steps")] = None
    """Steps by which a worker was ever given weights ahead of the slowest (asp, ssp); in `summary.csv` of all
    launches."""
    equivalence_error: float | None = None
    """Largest distance of a weight from that of one process on the workers' batches, over what rounding explains there
    (docs/method.md); blank if it is infinite; in `summary.csv` the worst launch. Older results: the relative L2
    distance of all weights after 10 steps."""
    equivalence_bound: float | None = None
    """Largest equivalence_error that passes: 1."""
    convergence: float | None = None
    """How far the held-out loss fell over how far that of one process on the concatenated batches did, for runs that
    do not promise its weights (asp, ssp, compression, sync_every)."""
    gate_passed: bool | None = None
    """Whether the equivalence gate found the model that was promised; blank where it did not judge this run, and in
    older results."""
    worker_cpu_s: float | None = None
    """CPU time of a worker's process, mean over workers."""
    server_cpu_s: float | None = None
    """CPU time of a server's process, mean over servers."""
    worker_peak_memory_bytes: float | None = None
    """Largest resident memory of any worker; without its weights and activations where it only slept; memory shared
    with other ranks included."""
    server_peak_memory_bytes: float | None = None
    """Largest resident memory of any server; memory shared with other ranks included."""
    energy_j: Annotated[float | None, Unit("J")] = None
    """Energy of the processors of all machines during the run, warm-up included, as they count it themselves (RAPL);
    blank where that cannot be read."""
    probe_ratio_before: float | None = None
    """Time of a bare ring over TCP sockets before the run, over its closed form; on emulated nodes only."""
    probe_ratio_after: float | None = None
    """The same after the run; a strategy's idle threads may lengthen it."""
    run_delay_share: float | None = None
    """Share of its time in which the worst thread of any rank was ready to run and had no core; blank, as the next
    two, where ranks are on several machines."""
    foreign_cpu_share: float | None = None
    """Share of the machine's cores that other processes used, or other machines took, during the run; blank for runs
    under 0.5 s."""
    disturbance: float | None = None
    """By which share of its time others may have slowed the run at most: the largest of f/(1 − f) with f
    foreign_cpu_share, but at most the sum of all ranks' run delays; the distance of probe_ratio_before from 1; 0.2 s
    per TCP timeout over the time of all steps. With emulated or no compute at most what the mean step took above the
    shortest one that its links and its compute allow."""
    packet_drops: Annotated[int | None, Unit("packets")] = None
    """Packets that the nodes' shaped links dropped; on emulated nodes only, as all of the following up to napping."""
    retransmitted_share: float | None = None
    """TCP segments sent again, over all that were sent."""
    tcp_timeouts: int | None = None
    """TCP retransmission timeouts on all nodes."""
    link_bursts_per_step: Annotated[float | None, Unit("bursts")] = None
    """Bytes that the busiest link carried in one step, in buckets of 128 KiB: with fewer than 10 the link's rate
    hardly shows."""
    link_overlimits: int | None = None
    """How often the busiest link made a packet wait for its rate."""
    napping: bool | None = None
    """Whether waiting ranks slept between polls (the nap shim was loaded)."""
    rank_start: Literal["template", "exec"] | None = None
    """How ranks were started: `template` (forked from a process that had imported torch) or `exec`; blank in older
    results."""
