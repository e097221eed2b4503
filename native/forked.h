/* Whether this process was forked off the one that a thing with a thread was made in. Its thread is not here, its lock
 * may be held for ever, and its epoll and its eventfds are the parent's too. */
#include <pthread.h>
#include <stdbool.h>

static unsigned forks; /* that lie between this process and the one that loaded the module */

static void count_fork(void) { forks++; }

static void watch_forks(void) {
    static bool watched;
    if (!watched) watched = pthread_atfork(NULL, NULL, count_fork) == 0;
}
