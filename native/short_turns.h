/* Scheduling of the two compiled threads, which must run on time. */
#ifndef SHORT_TURNS_H
#define SHORT_TURNS_H

#include <sched.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define TURN_NS 100000 /* the shortest slice that the scheduler allows */
#define NICE -15
#define NICE_OFF "ASR_LOAD_NICE" /* the value 0 in the environment keeps the nice value */

/* Ask the scheduler to run this thread as soon as it wakes; otherwise a busy thread on its processor, such as the
 * interpreter, keeps running for milliseconds. A short slice (Linux 6.12) needs no privilege, a lower nice value does.
 * If both are refused, the thread runs later, which its lags show. Returns the nice value. */
static inline int ask_for_the_processor(void) {
    const char *off = getenv(NICE_OFF);
    int before = getpriority(PRIO_PROCESS, 0), wish = off != NULL && strcmp(off, "0") == 0 ? before : NICE;
    struct {
        uint32_t size, policy;
        uint64_t flags;
        int32_t nice;
        uint32_t priority;
        uint64_t runtime, deadline, period;
    } wanted = {.size = sizeof wanted, .policy = SCHED_OTHER, .nice = wish, .runtime = TURN_NS};
    if (syscall(SYS_sched_setattr, 0, &wanted, 0) == 0) return wish;
    wanted.nice = before;
    syscall(SYS_sched_setattr, 0, &wanted, 0);
    return before;
}

#endif
