/* Preloaded: sets the time of day back by an hour as soon as the file named by CLOCK_SET_BACK exists.
 * Monotonic clocks are unchanged, as by a real clock adjustment. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static time_t offset(void) {
    const char *mark = getenv("CLOCK_SET_BACK");
    return mark && access(mark, F_OK) == 0 ? -3600 : 0;
}

int clock_gettime(clockid_t id, struct timespec *now) {
    const int failed = (int)syscall(SYS_clock_gettime, id, now);
    if (!failed && id == CLOCK_REALTIME) now->tv_sec += offset();
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec here;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &here);
    now->tv_sec = here.tv_sec;
    now->tv_usec = here.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now) {
    struct timespec here;
    clock_gettime(CLOCK_REALTIME, &here);
    if (now) *now = here.tv_sec;
    return here.tv_sec;
}
