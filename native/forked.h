/* Detects forks: in a child, an object that owns a thread has none, its lock may be held forever, and it shares its
 * epoll and eventfds with the parent. */
#include <pthread.h>
#include <stdbool.h>

static unsigned forks; /* number of forks between this process and the one that loaded the module */

static void count_fork(void) { forks++; }

static void watch_forks(void) {
    static bool watched;
    if (!watched) watched = pthread_atfork(NULL, NULL, count_fork) == 0;
}
