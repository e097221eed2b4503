/* What the two compiled threads, which must be on time, ask of Linux's scheduler. */
#ifndef SHORT_TURNS_H
#define SHORT_TURNS_H

#include <sched.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define TURN_NS 100000 /* the shortest that the scheduler allows */
#define NICE -15

/* Ask the scheduler to run this thread as soon as it wakes: else whatever is busy on its processor, such as the
 * interpreter, goes on for milliseconds. Short turns (Linux 6.12) need no right, the better rank does. Where both are
 * refused the thread is later, and says so where it is asked how late it is. */
static inline void ask_for_the_processor(void) {
    struct {
        uint32_t size, policy;
        uint64_t flags;
        int32_t nice;
        uint32_t priority;
        uint64_t runtime, deadline, period;
    } wanted = {.size = sizeof wanted, .policy = SCHED_OTHER, .nice = NICE, .runtime = TURN_NS};
    if (syscall(SYS_sched_setattr, 0, &wanted, 0) == 0) return;
    wanted.nice = getpriority(PRIO_PROCESS, 0);
    syscall(SYS_sched_setattr, 0, &wanted, 0);
}

#endif
