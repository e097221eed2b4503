/* Reads sockets in a thread of its own, and stamps every read: the compiled half of tap.py, which says what for.
 *
 * The thread never takes the interpreter's lock, so a busy Python process does not keep it. It waits for all sockets
 * with one epoll, takes HTTP's chunks apart, and wakes Python only for what somebody waits for: an answer's head, and
 * its end. Stamps are of CLOCK_MONOTONIC (what time.perf_counter_ns() reads on Linux), and of the moment when the kernel
 * got the bytes. So the thread may rest after a look at the sockets, and read what has come meanwhile in one go: waking
 * it for each chunk would cost four times what reading it does. Where nothing comes for as long it does not rest: nobody
 * waits for an answer's end longer than need be.
 *
 * One lock guards all taps. It is held while one tap's socket is read empty, or for a copy, never while waiting.
 */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "short_turns.h"

#define READ_BYTES 65536
#define BATCH 256
#define MAX_BYTES ((size_t)64 << 20) /* of one answer: no transcript comes near it, and memory stays bounded */
#define TICK_NS 20000000             /* how often the thread looks how late it is */
#define REST_NS 1000000              /* chunks of one stream that come closer together are read, and stamped, as one */
#define LAGS 1024
#define OUT_OF_ORDER 224             /* where struct tcp_info has tcpi_rcv_ooopack: Linux 5.4 has it, older headers not */
#define MAX_SIZE_LINE 4096           /* of the line with a chunk's size */

enum { STOP = UINT32_MAX, TICK = UINT32_MAX - 1 }; /* in place of a slot */
enum { CHUNKED = -1, UNTIL_CLOSE = -2 };
enum status { RUNNING, COMPLETE, CUT, BROKEN, TOO_LONG, FAILED };
enum chunk_state { SIZE, EXTENSION, DATA, AFTER_DATA, TRAILER };

typedef struct {
    char *bytes;
    size_t used, room;
} Buffer;

typedef struct {
    int64_t at;  /* nanoseconds */
    size_t end;  /* bytes that had come by then */
} Mark;

typedef struct {
    Mark *marks;
    size_t used, room;
} Marks;

typedef struct Reader Reader;

typedef struct {
    PyObject_HEAD
    Reader *reader;
    PyObject *owner;
    uint32_t slot;
    int fd; /* a duplicate of our own: nobody else can close it, or give its number to another socket */
    /* What follows belongs to whoever holds the lock. */
    Buffer raw, body;
    Marks raw_marks, body_marks;
    bool in_body;
    int64_t framing; /* CHUNKED, UNTIL_CLOSE, or the bytes of a body of known length that are still to come */
    enum chunk_state chunk;
    size_t left;     /* of a chunk's size, or of its data */
    size_t line;     /* bytes of the line that is being read */
    enum { DIGITS, BLANKS, RETURN } behind; /* what the last byte of a chunk's size was */
    bool surplus;    /* bytes came after the end */
    enum status status;
    int error;
    int64_t last;
    uint32_t out_of_order; /* packets, at the beginning */
    bool waits, for_end, queued;
    size_t beyond;
} Tap;

struct Reader {
    PyObject_HEAD
    pthread_t thread;
    pthread_mutex_t lock;
    int epoll, wake, stop, tick;
    int64_t due;         /* of the next tick */
    int64_t rests_until; /* when the thread meant to look next */
    int64_t since;       /* what is found ready now was not so then */
    int64_t epoch;       /* CLOCK_REALTIME, which the kernel's stamps are of, less CLOCK_MONOTONIC */
    bool stamped;        /* whether the kernel stamped what was read last */
    int64_t lags[LAGS];
    size_t n_lags;
    bool running, stopping;
    struct {
        Tap *tap;
        uint32_t generation;
    } *slots;
    size_t n_slots;
    uint32_t *woken;
    size_t n_woken;
};

static int64_t nanoseconds(struct timespec time) { return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec; }

static int64_t clock_ns(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return nanoseconds(now);
}

static int64_t now_ns(void) { return clock_ns(CLOCK_MONOTONIC); }

/* Append; false if memory or the limit is used up. */
static bool append(Buffer *buffer, const char *bytes, size_t n) {
    if (buffer->used + n > MAX_BYTES) return false;
    if (buffer->used + n > buffer->room) {
        size_t room = buffer->room ? buffer->room : 4096;
        while (room < buffer->used + n) room *= 2;
        char *grown = realloc(buffer->bytes, room);
        if (grown == NULL) return false;
        buffer->bytes = grown;
        buffer->room = room;
    }
    memcpy(buffer->bytes + buffer->used, bytes, n);
    buffer->used += n;
    return true;
}

static bool mark(Marks *marks, int64_t at, size_t end) {
    if (marks->used == marks->room) {
        size_t room = marks->room ? 2 * marks->room : 64;
        Mark *grown = realloc(marks->marks, room * sizeof *grown);
        if (grown == NULL) return false;
        marks->marks = grown;
        marks->room = room;
    }
    marks->marks[marks->used++] = (Mark){at, end};
    return true;
}

/* Take a chunked body's framing off (RFC 9112, section 7.1). Returns how many bytes were used. */
static size_t take_chunked(Tap *tap, const char *bytes, size_t n) {
    size_t i = 0;
    while (i < n && tap->status == RUNNING) {
        if (tap->chunk == DATA) {
            size_t part = n - i < tap->left ? n - i : tap->left;
            if (!append(&tap->body, bytes + i, part)) {
                tap->status = TOO_LONG;
                break;
            }
            i += part;
            tap->left -= part;
            if (tap->left == 0) tap->chunk = AFTER_DATA;
            continue;
        }
        char c = bytes[i++];
        switch (tap->chunk) {
        case SIZE:
            if (c == '\r') {
                tap->behind = RETURN;
            } else if (c == '\n' && tap->line) {
                tap->chunk = tap->left ? DATA : TRAILER;
                tap->line = 0;
                tap->behind = DIGITS;
            } else if (c == ';' && tap->line && tap->behind != RETURN) {
                tap->chunk = EXTENSION;
                tap->behind = DIGITS;
            } else if ((c == ' ' || c == '\t') && tap->behind != RETURN) {
                tap->behind = tap->line ? BLANKS : DIGITS;
            } else if (tap->behind != DIGITS) {
                tap->status = BROKEN;
            } else {
                int digit = c >= '0' && c <= '9'   ? c - '0'
                            : c >= 'a' && c <= 'f' ? c - 'a' + 10
                            : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                                   : -1;
                if (digit < 0 || ++tap->line > 15) tap->status = BROKEN;
                tap->left = tap->left * 16 + (size_t)(digit < 0 ? 0 : digit);
            }
            break;
        case EXTENSION:
            if (++tap->line > MAX_SIZE_LINE) tap->status = BROKEN;
            if (c == '\n') {
                tap->chunk = tap->left ? DATA : TRAILER;
                tap->line = 0;
            }
            break;
        case AFTER_DATA:
            if (c != "\r\n"[tap->line]) {
                tap->status = BROKEN;
            } else if (++tap->line == 2) {
                tap->chunk = SIZE;
                tap->line = 0;
            }
            break;
        default: /* TRAILER: lines up to an empty one */
            if (c == '\n') {
                if (tap->line == 0) tap->status = COMPLETE;
                tap->line = 0;
            } else if (c != '\r' && ++tap->line > MAX_SIZE_LINE) {
                tap->status = BROKEN;
            }
        }
    }
    return i;
}

/* Take bytes of the body that came at a time. */
static void take_body(Tap *tap, const char *bytes, size_t n, int64_t at) {
    size_t before = tap->body.used, used = n;
    if (tap->framing == CHUNKED) {
        used = take_chunked(tap, bytes, n);
    } else {
        if (tap->framing >= 0 && (int64_t)n > tap->framing) used = (size_t)tap->framing;
        if (!append(&tap->body, bytes, used)) tap->status = TOO_LONG;
        if (tap->framing >= 0 && tap->status == RUNNING) {
            tap->framing -= (int64_t)used;
            if (tap->framing == 0) tap->status = COMPLETE;
        }
    }
    if (used < n && tap->status == COMPLETE) tap->surplus = true;
    if (tap->body.used > before && !mark(&tap->body_marks, at, tap->body.used)) tap->status = TOO_LONG;
}

static bool has_come(const Tap *tap) {
    return tap->status != RUNNING || (!tap->for_end && tap->raw.used > tap->beyond);
}

/* The packets that a connection got and that did not follow what it had; UINT32_MAX where the kernel counts none. */
static uint32_t out_of_order(int fd) {
    uint32_t count;
    char info[OUT_OF_ORDER + sizeof count];
    socklen_t size = sizeof info;
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, info, &size) < 0 || size < sizeof info) return UINT32_MAX;
    memcpy(&count, info + OUT_OF_ORDER, sizeof count);
    return count;
}

static bool came_out_of_order(const Tap *tap) {
    return tap->out_of_order == UINT32_MAX || out_of_order(tap->fd) != tap->out_of_order;
}

/* When the last of the bytes of a message could be read: when the kernel got them, as it says. Now, if it does not say.
 *
 * What follows a lost packet has an early stamp, and waits in the kernel until that packet was sent again. So where any
 * came out of order, a stamp is only believed if it is no older than a rest and a look make it. CLOCK_REALTIME can be
 * set: no stamp is before the last look at the sockets, which did not find these bytes, nor before the one that it
 * follows. */
static int64_t stamp(Reader *reader, const Tap *tap, struct msghdr *message, int64_t now) {
    struct cmsghdr *control = CMSG_FIRSTHDR(message);
    reader->stamped = control != NULL && control->cmsg_level == SOL_SOCKET && control->cmsg_type == SCM_TIMESTAMPNS;
    if (!reader->stamped) return now;
    struct timespec stamped;
    memcpy(&stamped, CMSG_DATA(control), sizeof stamped);
    int64_t at = nanoseconds(stamped) - reader->epoch;
    if (at < reader->since) at = reader->since;
    if (at < tap->last) at = tap->last;
    if (at > now || (at < now - 2 * REST_NS && came_out_of_order(tap))) return now;
    return at;
}

/* One read of a tap whose socket is ready. Returns how many bytes came; fewer than asked for were all that was there.
 * Called with the lock. */
static ssize_t read_once(Reader *reader, Tap *tap, char *scratch) {
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(struct timespec))];
    struct iovec bytes = {scratch, READ_BYTES};
    struct msghdr message = {
        .msg_iov = &bytes, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    ssize_t n;
    do n = recvmsg(tap->fd, &message, MSG_DONTWAIT);
    while (n < 0 && errno == EINTR);
    int64_t now = now_ns();
    if (n < 0) {
        if (errno == EAGAIN || errno == EWOULDBLOCK) return 0;
        tap->error = errno;
        tap->status = FAILED;
    } else if (n == 0) {
        tap->status = tap->in_body && tap->framing == UNTIL_CLOSE ? COMPLETE : CUT;
    } else {
        int64_t at = tap->last = stamp(reader, tap, &message, now);
        if (tap->in_body) {
            take_body(tap, scratch, (size_t)n, at);
        } else if (!append(&tap->raw, scratch, (size_t)n) || !mark(&tap->raw_marks, at, tap->raw.used)) {
            tap->status = TOO_LONG;
        }
    }
    return n;
}

/* How late this thread runs: chunks of one stream that come meanwhile are seen as one. A tick that was missed counts,
 * with the wait that it had. */
static void note_lag(Reader *reader) {
    uint64_t ticks;
    if (read(reader->tick, &ticks, sizeof ticks) != sizeof ticks) return;
    for (int64_t now = now_ns(); ticks > 0; ticks--, reader->due += TICK_NS) {
        /* A rest is not late: what fell due in it was meant for its end, what fell due before it could not wait less. */
        int64_t began = reader->rests_until - REST_NS, meant = reader->due;
        if (meant < reader->rests_until) meant = meant < began ? meant + REST_NS : reader->rests_until;
        if (reader->n_lags < LAGS) reader->lags[reader->n_lags++] = now - meant;
    }
}

/* Let chunks come, so that they are read together. */
static void rest(Reader *reader) {
    int64_t until = reader->rests_until = now_ns() + REST_NS;
    struct timespec end = {until / 1000000000, until % 1000000000};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &end, NULL);
}

static void *read_all(void *given) {
    Reader *reader = given;
    ask_for_the_processor();
    static _Thread_local char scratch[READ_BYTES];
    struct epoll_event ready[BATCH];
    int64_t free_since = 0; /* of the last find and its rest */
    for (;;) {
        int64_t looked = now_ns();
        int n = epoll_wait(reader->epoll, ready, BATCH, -1);
        /* In this order: if the thread is stopped between the two, stamps are late, and none is before its time. */
        int64_t real = clock_ns(CLOCK_REALTIME);
        int64_t found = now_ns();
        reader->epoch = real - found;
        bool wake = false, has_read = false;
        for (int i = 0; i < n; i++) {
            uint32_t slot = (uint32_t)ready[i].data.u64, generation = (uint32_t)(ready[i].data.u64 >> 32);
            if (slot == STOP) return NULL;
            pthread_mutex_lock(&reader->lock);
            if (slot == TICK) {
                note_lag(reader);
                pthread_mutex_unlock(&reader->lock);
                continue;
            }
            Tap *tap = reader->slots[slot].tap;
            if (tap != NULL && reader->slots[slot].generation == generation) {
                /* The kernel tells of a socket once, and of the other side's end, or of urgent data, at which a read
                 * stops short, with the bytes before it. */
                bool to_the_end = ready[i].events & ~(uint32_t)EPOLLIN;
                ssize_t read;
                do read = read_once(reader, tap, scratch);
                while (tap->status == RUNNING && (read == READ_BYTES || (to_the_end && read > 0)));
                has_read = true;
                if (tap->status != RUNNING) epoll_ctl(reader->epoll, EPOLL_CTL_DEL, tap->fd, NULL);
                if (tap->waits && has_come(tap)) {
                    tap->waits = false;
                    if (!tap->queued) reader->woken[reader->n_woken++] = slot;
                    tap->queued = wake = true;
                }
            }
            pthread_mutex_unlock(&reader->lock);
        }
        if (wake) eventfd_write(reader->wake, 1);
        if (n == BATCH) continue;
        reader->since = looked;
        if (!has_read) continue;
        bool busy = reader->stamped && found - free_since < REST_NS;
        free_since = found;
        if (busy) {
            rest(reader);
            free_since = reader->rests_until;
        }
    }
}

/* ---- Tap ---- */

static void release(Tap *tap) {
    Reader *reader = tap->reader;
    if (tap->fd < 0) return;
    pthread_mutex_lock(&reader->lock);
    /* The thread has taken itself out when the answer ended; a second time does no harm. */
    epoll_ctl(reader->epoll, EPOLL_CTL_DEL, tap->fd, NULL);
    close(tap->fd);
    tap->fd = -1;
    reader->slots[tap->slot].tap = NULL;
    reader->slots[tap->slot].generation++;
    size_t kept = 0;
    for (size_t i = 0; i < reader->n_woken; i++)
        if (reader->woken[i] != tap->slot) reader->woken[kept++] = reader->woken[i];
    reader->n_woken = kept;
    pthread_mutex_unlock(&reader->lock);
}

static void tap_dealloc(Tap *tap) {
    if (tap->reader != NULL) release(tap);
    free(tap->raw.bytes);
    free(tap->body.bytes);
    free(tap->raw_marks.marks);
    free(tap->body_marks.marks);
    Py_XDECREF(tap->owner);
    Py_XDECREF(tap->reader);
    PyTypeObject *type = Py_TYPE(tap);
    type->tp_free(tap);
    Py_DECREF(type);
}

static PyObject *tap_want(Tap *tap, PyObject *args) {
    Py_ssize_t beyond;
    if (!PyArg_ParseTuple(args, "n", &beyond)) return NULL;
    pthread_mutex_lock(&tap->reader->lock);
    tap->for_end = beyond < 0;
    tap->beyond = beyond < 0 ? 0 : (size_t)beyond;
    bool come = has_come(tap);
    tap->waits = !come;
    pthread_mutex_unlock(&tap->reader->lock);
    return PyBool_FromLong(come);
}

static PyObject *tap_head(Tap *tap, PyObject *args) {
    Py_ssize_t from;
    if (!PyArg_ParseTuple(args, "n", &from)) return NULL;
    pthread_mutex_lock(&tap->reader->lock);
    size_t start = from < 0 ? 0 : (size_t)from > tap->raw.used ? tap->raw.used : (size_t)from;
    PyObject *bytes = PyBytes_FromStringAndSize(tap->raw.bytes + start, (Py_ssize_t)(tap->raw.used - start));
    pthread_mutex_unlock(&tap->reader->lock);
    return bytes;
}

static PyObject *tap_stamp(Tap *tap, PyObject *args) {
    Py_ssize_t position;
    if (!PyArg_ParseTuple(args, "n", &position)) return NULL;
    pthread_mutex_lock(&tap->reader->lock);
    int64_t at = tap->last;
    for (size_t i = 0; i < tap->raw_marks.used; i++)
        if ((size_t)position <= tap->raw_marks.marks[i].end) {
            at = tap->raw_marks.marks[i].at;
            break;
        }
    pthread_mutex_unlock(&tap->reader->lock);
    return PyLong_FromLongLong(at);
}

static PyObject *tap_begin_body(Tap *tap, PyObject *args) {
    Py_ssize_t from;
    long long framing;
    if (!PyArg_ParseTuple(args, "nL", &from, &framing)) return NULL;
    pthread_mutex_lock(&tap->reader->lock);
    tap->in_body = true;
    tap->framing = framing;
    enum status before = tap->status;
    tap->status = framing == 0 ? COMPLETE : RUNNING;
    size_t start = (size_t)from;
    for (size_t i = 0; i < tap->raw_marks.used; i++) {
        Mark at = tap->raw_marks.marks[i];
        if (at.end <= start) continue;
        if (tap->status == RUNNING)
            take_body(tap, tap->raw.bytes + start, at.end - start, at.at);
        else
            tap->surplus = true;
        start = at.end;
    }
    /* What had ended before Python knew how the body is framed. */
    if (tap->status == RUNNING && before != RUNNING)
        tap->status = before == CUT && framing == UNTIL_CLOSE ? COMPLETE : before;
    if (tap->status != RUNNING) epoll_ctl(tap->reader->epoll, EPOLL_CTL_DEL, tap->fd, NULL);
    pthread_mutex_unlock(&tap->reader->lock);
    Py_RETURN_NONE;
}

static PyObject *tap_collected(Tap *tap, PyObject *Py_UNUSED(ignored)) {
    /* The lists are made without the lock: until then nothing that they need can move but by growing. */
    pthread_mutex_lock(&tap->reader->lock);
    size_t n = tap->body_marks.used;
    PyObject *body = PyBytes_FromStringAndSize(tap->body.bytes, (Py_ssize_t)tap->body.used);
    Mark *marks = malloc(n * sizeof *marks + 1);
    if (marks != NULL && n) memcpy(marks, tap->body_marks.marks, n * sizeof *marks);
    pthread_mutex_unlock(&tap->reader->lock);
    PyObject *stamps = PyList_New((Py_ssize_t)n), *ends = PyList_New((Py_ssize_t)n);
    if (body == NULL || marks == NULL || stamps == NULL || ends == NULL) {
        free(marks);
        Py_XDECREF(body);
        Py_XDECREF(stamps);
        Py_XDECREF(ends);
        return PyErr_Occurred() ? NULL : PyErr_NoMemory();
    }
    for (size_t i = 0; i < n; i++) {
        PyList_SET_ITEM(stamps, (Py_ssize_t)i, PyLong_FromLongLong(marks[i].at));
        PyList_SET_ITEM(ends, (Py_ssize_t)i, PyLong_FromSize_t(marks[i].end));
    }
    free(marks);
    return Py_BuildValue("(NNN)", body, stamps, ends);
}

static PyObject *tap_close(Tap *tap, PyObject *Py_UNUSED(ignored)) {
    release(tap);
    Py_RETURN_NONE;
}

static PyObject *tap_status(Tap *tap, void *Py_UNUSED(closure)) {
    static const char *names[] = {"running", "complete", "cut", "broken", "too long", "failed"};
    return PyUnicode_FromString(names[tap->status]);
}

static PyObject *tap_error(Tap *tap, void *Py_UNUSED(closure)) { return PyLong_FromLong(tap->error); }

static PyObject *tap_last(Tap *tap, void *Py_UNUSED(closure)) {
    pthread_mutex_lock(&tap->reader->lock);
    int64_t last = tap->last;
    pthread_mutex_unlock(&tap->reader->lock);
    return PyLong_FromLongLong(last);
}

static PyObject *tap_surplus(Tap *tap, void *Py_UNUSED(closure)) { return PyBool_FromLong(tap->surplus); }

static PyMethodDef tap_methods[] = {
    {"want", (PyCFunction)tap_want, METH_VARARGS, "Wait for more head than so many bytes (-1: for the end); True if it is there."},
    {"head", (PyCFunction)tap_head, METH_VARARGS, "The bytes from a position on, while the head is read."},
    {"stamp", (PyCFunction)tap_stamp, METH_VARARGS, "When the read came that brought the head up to a position."},
    {"begin_body", (PyCFunction)tap_begin_body, METH_VARARGS, "Say where the body begins, and its framing."},
    {"collected", (PyCFunction)tap_collected, METH_NOARGS, "The body so far, and for each read its stamp and its end."},
    {"close", (PyCFunction)tap_close, METH_NOARGS, "Read no more."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef tap_values[] = {
    {"status", (getter)tap_status, NULL, "running, complete, cut, broken, too long or failed", NULL},
    {"error", (getter)tap_error, NULL, "errno, where failed", NULL},
    {"last", (getter)tap_last, NULL, "stamp of the last read, 0 before the first", NULL},
    {"surplus", (getter)tap_surplus, NULL, "whether bytes came after the end", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot tap_slots[] = {
    {Py_tp_dealloc, tap_dealloc},
    {Py_tp_methods, tap_methods},
    {Py_tp_getset, tap_values},
    {Py_tp_doc, "What comes on one socket, from a moment on."},
    {0, NULL},
};

static PyType_Spec tap_spec = {
    .name = "asr_load.load._tap.Tap",
    .basicsize = sizeof(Tap),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = tap_slots,
};

static PyTypeObject *tap_type;

/* ---- Reader ---- */

static PyObject *reader_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    if (!PyArg_ParseTuple(args, "") || (kwargs != NULL && PyDict_Size(kwargs))) return NULL;
    Reader *reader = (Reader *)type->tp_alloc(type, 0);
    if (reader == NULL) return NULL;
    reader->epoll = reader->wake = reader->stop = reader->tick = -1;
    pthread_mutex_init(&reader->lock, NULL);
    reader->due = now_ns() + TICK_NS;
    struct itimerspec ticks = {
        .it_value = {reader->due / 1000000000, reader->due % 1000000000}, .it_interval = {0, TICK_NS}};
    reader->tick = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    reader->epoll = epoll_create1(EPOLL_CLOEXEC);
    reader->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    reader->stop = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct epoll_event stop = {.events = EPOLLIN, .data.u64 = STOP}, tick = {.events = EPOLLIN, .data.u64 = TICK};
    if (reader->epoll < 0 || reader->wake < 0 || reader->stop < 0 || reader->tick < 0 ||
        timerfd_settime(reader->tick, TFD_TIMER_ABSTIME, &ticks, NULL) < 0 ||
        epoll_ctl(reader->epoll, EPOLL_CTL_ADD, reader->stop, &stop) < 0 ||
        epoll_ctl(reader->epoll, EPOLL_CTL_ADD, reader->tick, &tick) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        Py_DECREF(reader);
        return NULL;
    }
    /* Signals are for the interpreter's thread. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_create(&reader->thread, NULL, read_all, reader);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed) {
        errno = failed;
        PyErr_SetFromErrno(PyExc_OSError);
        Py_DECREF(reader);
        return NULL;
    }
    reader->running = true;
    return (PyObject *)reader;
}

static PyObject *reader_close(Reader *reader, PyObject *Py_UNUSED(ignored)) {
    if (reader->running) {
        reader->running = false;
        eventfd_write(reader->stop, 1);
        Py_BEGIN_ALLOW_THREADS
        pthread_join(reader->thread, NULL);
        Py_END_ALLOW_THREADS
    }
    Py_RETURN_NONE;
}

static void reader_dealloc(Reader *reader) {
    Py_XDECREF(reader_close(reader, NULL));
    if (reader->epoll >= 0) close(reader->epoll);
    if (reader->wake >= 0) close(reader->wake);
    if (reader->stop >= 0) close(reader->stop);
    if (reader->tick >= 0) close(reader->tick);
    pthread_mutex_destroy(&reader->lock);
    free(reader->slots);
    free(reader->woken);
    PyTypeObject *type = Py_TYPE(reader);
    type->tp_free(reader);
    Py_DECREF(type);
}

static PyObject *reader_fileno(Reader *reader, PyObject *Py_UNUSED(ignored)) { return PyLong_FromLong(reader->wake); }

/* A free slot, with the lock; -1 without memory. */
static long free_slot(Reader *reader) {
    for (size_t i = 0; i < reader->n_slots; i++)
        if (reader->slots[i].tap == NULL) return (long)i;
    size_t room = reader->n_slots ? 2 * reader->n_slots : 64;
    void *slots = realloc(reader->slots, room * sizeof *reader->slots);
    if (slots == NULL) return -1;
    reader->slots = slots;
    uint32_t *woken = realloc(reader->woken, room * sizeof *woken);
    if (woken == NULL) return -1;
    reader->woken = woken;
    memset(reader->slots + reader->n_slots, 0, (room - reader->n_slots) * sizeof *reader->slots);
    long first = (long)reader->n_slots;
    reader->n_slots = room;
    return first;
}

static PyObject *reader_tap(Reader *reader, PyObject *args) {
    int fd;
    PyObject *owner;
    if (!PyArg_ParseTuple(args, "iO", &fd, &owner)) return NULL;
    Tap *tap = (Tap *)tap_type->tp_alloc(tap_type, 0);
    if (tap == NULL) return NULL;
    tap->fd = -1;
    tap->owner = Py_NewRef(owner);
    tap->reader = (Reader *)Py_NewRef((PyObject *)reader);
    int own = dup(fd);
    if (own < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        Py_DECREF(tap);
        return NULL;
    }
    int on = 1; /* where it is refused, stamps are made at the read */
    setsockopt(own, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on);
    pthread_mutex_lock(&reader->lock);
    long slot = free_slot(reader);
    bool added = false;
    if (slot >= 0) {
        tap->fd = own;
        tap->out_of_order = out_of_order(own);
        tap->slot = (uint32_t)slot;
        reader->slots[slot].tap = tap;
        uint64_t name = (uint64_t)reader->slots[slot].generation << 32 | (uint32_t)slot;
        struct epoll_event wanted = {.events = EPOLLIN | EPOLLPRI | EPOLLRDHUP | EPOLLET, .data.u64 = name};
        added = epoll_ctl(reader->epoll, EPOLL_CTL_ADD, own, &wanted) == 0;
    }
    pthread_mutex_unlock(&reader->lock);
    if (!added) {
        if (slot < 0) close(own);
        PyErr_SetFromErrno(PyExc_OSError);
        Py_DECREF(tap);
        return NULL;
    }
    return (PyObject *)tap;
}

static PyObject *reader_woken(Reader *reader, PyObject *Py_UNUSED(ignored)) {
    eventfd_t count;
    eventfd_read(reader->wake, &count);
    PyObject *owners = PyList_New(0);
    if (owners == NULL) return NULL;
    pthread_mutex_lock(&reader->lock);
    for (size_t i = 0; i < reader->n_woken; i++) {
        Tap *tap = reader->slots[reader->woken[i]].tap;
        if (tap == NULL) continue;
        tap->queued = false;
        if (PyList_Append(owners, tap->owner) < 0) PyErr_Clear();
    }
    reader->n_woken = 0;
    pthread_mutex_unlock(&reader->lock);
    return owners;
}

static PyObject *reader_lags(Reader *reader, PyObject *Py_UNUSED(ignored)) {
    int64_t lags[LAGS];
    pthread_mutex_lock(&reader->lock);
    size_t n = reader->n_lags;
    memcpy(lags, reader->lags, n * sizeof *lags);
    reader->n_lags = 0;
    pthread_mutex_unlock(&reader->lock);
    PyObject *list = PyList_New((Py_ssize_t)n);
    for (size_t i = 0; list != NULL && i < n; i++) PyList_SET_ITEM(list, (Py_ssize_t)i, PyLong_FromLongLong(lags[i]));
    return list;
}

static PyMethodDef reader_methods[] = {
    {"fileno", (PyCFunction)reader_fileno, METH_NOARGS, "Readable when somebody is to be woken."},
    {"tap", (PyCFunction)reader_tap, METH_VARARGS, "Read a socket, by its descriptor, from now on; `woken` gives the owner back."},
    {"woken", (PyCFunction)reader_woken, METH_NOARGS, "The owners of taps that have what they waited for."},
    {"lags", (PyCFunction)reader_lags, METH_NOARGS, "How late the thread ran at each tick of 20 ms since the last call, in ns; at most 1024."},
    {"close", (PyCFunction)reader_close, METH_NOARGS, "End the thread."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot reader_slots[] = {
    {Py_tp_new, reader_new},
    {Py_tp_dealloc, reader_dealloc},
    {Py_tp_methods, reader_methods},
    {Py_tp_doc, "A thread that reads and stamps."},
    {0, NULL},
};

static PyType_Spec reader_spec = {
    .name = "asr_load.load._tap.Reader",
    .basicsize = sizeof(Reader),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = reader_slots,
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_tap", "See tap.py.", -1, NULL, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__tap(void) {
    PyObject *made = PyModule_Create(&module);
    if (made == NULL) return NULL;
    tap_type = (PyTypeObject *)PyType_FromSpec(&tap_spec);
    PyObject *reader_type = PyType_FromSpec(&reader_spec);
    if (tap_type == NULL || reader_type == NULL || PyModule_AddObject(made, "Reader", reader_type) < 0) {
        Py_XDECREF(tap_type);
        Py_XDECREF(reader_type);
        Py_DECREF(made);
        return NULL;
    }
    return made;
}
