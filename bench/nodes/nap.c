/* Preloaded on emulated nodes: sched_yield() sleeps 50 µs instead of returning at once.
 * Open MPI calls sched_yield() between two polls (mpi_yield_when_idle). With more ranks than cores, a rank that polls
 * without pause takes the core from the rank it waits for. */
#include <time.h>

int sched_yield(void) {
    const struct timespec nap = {0, 50 * 1000};
    nanosleep(&nap, 0);
    return 0;
}
