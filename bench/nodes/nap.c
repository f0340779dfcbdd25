/* Loaded before libc on emulated nodes: a rank that has nothing to do naps instead of asking again at once.
 * Open MPI calls sched_yield() between two polls (mpi_yield_when_idle); with more ranks than cores, ranks that
 * poll take the core from the rank they wait for. */
#include <time.h>

int sched_yield(void) {
    const struct timespec nap = {0, 50 * 1000};
    nanosleep(&nap, 0);
    return 0;
}
