/* Reads sockets in a separate thread and stamps every read: the compiled part of socket_reader.py, which explains why.
 *
 * The thread never takes the interpreter's lock, so a busy Python process does not delay it. It waits for all sockets
 * with one epoll, decodes HTTP's chunks, and wakes Python only for the head of a response and for its end. Stamps are
 * of CLOCK_MONOTONIC (time.perf_counter_ns() on Linux) and say when the kernel received the bytes. So the thread can
 * rest after a look at the sockets, and then read everything that arrived meanwhile: waking it for each chunk would
 * cost four times as much as reading the chunk. If nothing arrives for as long as a rest, it does not rest, so that the
 * end of a response is not delayed.
 *
 * Python takes encrypted data piece by piece, and only then knows whether a response has ended. To avoid a wake-up for
 * each piece, the thread wakes Python for all of them together at intervals, but at once for a response's first piece,
 * which may be all of it, and for a short record, which may be its end.
 *
 * One lock protects all readers. It is held for one read of one socket or for a copy, never while waiting. */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <fcntl.h>
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

#include "forked.h"
#include "short_turns.h"

#define READ_BYTES 65536
#define BATCH 256
/* Limits of one response: see limits.py. */
#define MAX_BYTES ((size_t)16 << 20)
#define MAX_WIRE_BYTES ((size_t)64 << 20)
#define MAX_READS 100000
#define MAX_HEAD_BYTES ((size_t)64 << 10)
#define READS_AT_ONCE 64             /* of one socket, before the others have a turn */
#define TICK_NS 20000000             /* interval at which the thread measures how late it is */
#define REST_NS 1000000              /* chunks of a stream that arrive closer together are read and stamped as one */
#define LAGS 1024
#define OUT_OF_ORDER 224             /* offset of tcpi_rcv_ooopack in tcp_info: Linux 5.4, not in older headers */
#define MAX_SIZE_LINE 4096           /* maximum length of the line with a chunk's size */
#define TLS_HEAD 5                   /* bytes of a record's type, version and length: RFC 8446, section 5.1 */
#define SHORT_RECORD 96              /* maximum size of a record that may end a stream; few tokens fit in */
#define TAKEN_EVERY_NS 40000000      /* minimum interval of wake-ups for pieces that do not seem to be the end */

#define WANTED (EPOLLIN | EPOLLPRI | EPOLLRDHUP | EPOLLET)

enum { STOP = UINT32_MAX, TICK = UINT32_MAX - 1 }; /* instead of a slot */
enum { CHUNKED = -1, UNTIL_CLOSE = -2 };
enum status { RUNNING, COMPLETE, CUT, BROKEN, TOO_LONG, FAILED };
enum chunk_state { SIZE, EXTENSION, DATA, AFTER_DATA, TRAILER };

typedef struct {
    char *bytes;
    size_t used, room;
} Buffer;

typedef struct {
    int64_t at;  /* nanoseconds */
    size_t end;  /* bytes that had arrived by then */
} Mark;

typedef struct {
    Mark *marks;
    size_t used, room;
} Marks;

typedef struct ReadingThread ReadingThread;

typedef struct {
    PyObject_HEAD
    ReadingThread *reading;
    PyObject *owner;
    uint32_t slot;
    int fd; /* a duplicate, so that nobody else can close it or reuse its number for another socket */
    /* The lock protects the following fields. */
    Buffer raw, body;
    Marks raw_marks, body_marks;
    bool in_body;
    int64_t framing; /* CHUNKED, UNTIL_CLOSE, or the missing bytes of a body of known length */
    enum chunk_state chunk;
    size_t left;     /* the size of a chunk, then its missing bytes */
    size_t line;     /* bytes of the current line */
    size_t trailers; /* bytes of the lines after the body */
    size_t wire;     /* bytes received, including framing */
    enum { DIGITS, BLANKS, RETURN } behind; /* kind of the last byte of a chunk's size */
    bool surplus;    /* bytes arrived after the end */
    enum status status;
    int error;
    PyObject *failure; /* instead of an errno, if Python feeds the reader */
    int64_t last;
    uint32_t out_of_order; /* number of such packets at the beginning */
    bool taken;              /* Python takes it piece by piece, because it is TLS */
    uint8_t record[TLS_HEAD]; /* the head of the current TLS record */
    size_t in_head, in_record, record_size;
    bool may_be_end;         /* that record may end the response: it is short or the first */
    bool waits, for_end, queued;
    size_t beyond;
} SocketReader;

struct ReadingThread {
    PyObject_HEAD
    pthread_t thread;
    pthread_mutex_t lock;
    int epoll, wake, stop, tick;
    int64_t due;         /* when the next tick is due */
    int64_t rests_until; /* when the thread planned to look next */
    int64_t since;       /* data that is ready now was not ready then */
    int64_t epoch;       /* CLOCK_REALTIME, the clock of the kernel's stamps, minus CLOCK_MONOTONIC */
    bool stamped;        /* whether the kernel stamped the last read */
    int64_t woken_at;    /* when Python was last woken for pieces */
    bool holds;          /* whether there are pieces for which Python was not woken yet */
    int64_t lags[LAGS];
    size_t n_lags;
    bool running;
    int nice;       /* the thread's nice value */
    unsigned forks; /* value of the global counter when the thread was made */
    struct {
        SocketReader *reader;
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

/* Fail a response because memory ran out, which is not the server's fault. */
static void out_of_memory(SocketReader *reader) {
    reader->status = FAILED;
    reader->error = ENOMEM;
}

/* Append to a reader's buffer. Returns false, and sets the reader's status, if it is too long or memory runs out. */
static bool append(SocketReader *reader, Buffer *buffer, const char *bytes, size_t n) {
    if (buffer->used + n > (reader->taken ? MAX_WIRE_BYTES : MAX_BYTES)) {
        reader->status = TOO_LONG;
        return false;
    }
    if (buffer->used + n > buffer->room) {
        size_t room = buffer->room ? buffer->room : 4096;
        while (room < buffer->used + n) room *= 2;
        char *grown = realloc(buffer->bytes, room);
        if (grown == NULL) {
            out_of_memory(reader);
            return false;
        }
        buffer->bytes = grown;
        buffer->room = room;
    }
    memcpy(buffer->bytes + buffer->used, bytes, n);
    buffer->used += n;
    return true;
}

static void mark(SocketReader *reader, Marks *marks, int64_t at, size_t end) {
    if (marks->used == MAX_READS) {
        reader->status = TOO_LONG;
        return;
    }
    if (marks->used == marks->room) {
        size_t room = marks->room ? 2 * marks->room : 64;
        Mark *grown = realloc(marks->marks, room * sizeof *grown);
        if (grown == NULL) {
            out_of_memory(reader);
            return;
        }
        marks->marks = grown;
        marks->room = room;
    }
    marks->marks[marks->used++] = (Mark){at, end};
}

/* Remove the framing of a chunked body (RFC 9112, section 7.1). Returns the number of bytes used. */
static size_t take_chunked(SocketReader *reader, const char *bytes, size_t n) {
    size_t i = 0;
    while (i < n && reader->status == RUNNING) {
        if (reader->chunk == DATA) {
            size_t part = n - i < reader->left ? n - i : reader->left;
            if (!append(reader, &reader->body, bytes + i, part)) break;
            i += part;
            reader->left -= part;
            if (reader->left == 0) reader->chunk = AFTER_DATA;
            continue;
        }
        char c = bytes[i++];
        switch (reader->chunk) {
        case SIZE:
            if (c == '\r') {
                reader->behind = RETURN;
            } else if (c == '\n' && reader->line) {
                reader->chunk = reader->left ? DATA : TRAILER;
                reader->line = 0;
                reader->behind = DIGITS;
            } else if (c == ';' && reader->line && reader->behind != RETURN) {
                reader->chunk = EXTENSION;
                reader->behind = DIGITS;
            } else if ((c == ' ' || c == '\t') && reader->behind != RETURN) {
                reader->behind = reader->line ? BLANKS : DIGITS;
            } else if (reader->behind != DIGITS) {
                reader->status = BROKEN;
            } else {
                int digit = c >= '0' && c <= '9'   ? c - '0'
                            : c >= 'a' && c <= 'f' ? c - 'a' + 10
                            : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                                   : -1;
                if (digit < 0 || ++reader->line > 15) reader->status = BROKEN;
                reader->left = reader->left * 16 + (size_t)(digit < 0 ? 0 : digit);
            }
            break;
        case EXTENSION:
            if (++reader->line > MAX_SIZE_LINE) reader->status = BROKEN;
            if (c == '\n') {
                reader->chunk = reader->left ? DATA : TRAILER;
                reader->line = 0;
            }
            break;
        case AFTER_DATA:
            if (c != "\r\n"[reader->line]) {
                reader->status = BROKEN;
            } else if (++reader->line == 2) {
                reader->chunk = SIZE;
                reader->line = 0;
            }
            break;
        default: /* TRAILER: lines up to an empty one */
            if (c == '\n') {
                if (reader->line == 0) reader->status = COMPLETE;
                reader->line = 0;
            } else if (c != '\r' && (++reader->line > MAX_SIZE_LINE || ++reader->trailers > MAX_HEAD_BYTES)) {
                reader->status = BROKEN;
            }
        }
    }
    return i;
}

/* Add bytes of the body that arrived at a time. */
static void take_body(SocketReader *reader, const char *bytes, size_t n, int64_t at) {
    size_t before = reader->body.used, used = n;
    if (reader->framing == CHUNKED) {
        used = take_chunked(reader, bytes, n);
    } else {
        if (reader->framing >= 0 && (int64_t)n > reader->framing) used = (size_t)reader->framing;
        append(reader, &reader->body, bytes, used);
        if (reader->framing >= 0 && reader->status == RUNNING) {
            reader->framing -= (int64_t)used;
            if (reader->framing == 0) reader->status = COMPLETE;
        }
    }
    if (used < n && reader->status == COMPLETE) reader->surplus = true;
    if (reader->body.used > before) mark(reader, &reader->body_marks, at, reader->body.used);
}

static bool has_come(const SocketReader *reader) {
    return reader->status != RUNNING || (!reader->for_end && reader->raw.used > reader->beyond);
}

/* The number of packets that a connection received out of order; UINT32_MAX if the kernel does not count them. */
static uint32_t out_of_order(int fd) {
    uint32_t count;
    char info[OUT_OF_ORDER + sizeof count];
    socklen_t size = sizeof info;
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, info, &size) < 0 || size < sizeof info) return UINT32_MAX;
    memcpy(&count, info + OUT_OF_ORDER, sizeof count);
    return count;
}

static bool came_out_of_order(const SocketReader *reader) {
    return reader->out_of_order == UINT32_MAX || out_of_order(reader->fd) != reader->out_of_order;
}

/* When the last byte of a message became readable: when the kernel received it, by its stamp, or now without a stamp.
 *
 * A packet after a lost one has an early stamp, but waits in the kernel until the lost one is sent again. So if a
 * packet arrived out of order, a stamp must be no older than a rest and a look explain. Because CLOCK_REALTIME can be
 * set, a stamp is never before the last look at the sockets, which did not find these bytes, nor before the previous
 * stamp. */
static int64_t stamp(ReadingThread *reading, const SocketReader *reader, struct msghdr *message, int64_t now) {
    struct cmsghdr *control = CMSG_FIRSTHDR(message);
    reading->stamped = control != NULL && control->cmsg_level == SOL_SOCKET && control->cmsg_type == SCM_TIMESTAMPNS;
    if (!reading->stamped) return now;
    struct timespec stamped;
    memcpy(&stamped, CMSG_DATA(control), sizeof stamped);
    int64_t at = nanoseconds(stamped) - reading->epoch;
    if (at < reading->since) at = reading->since;
    if (at < reader->last) at = reader->last;
    if (at > now || (at < now - 2 * REST_NS && came_out_of_order(reader))) return now;
    return at;
}

/* Track TLS records to know the length of the last one. */
static void follow_records(SocketReader *reader, const char *bytes, size_t n) {
    for (size_t i = 0; i < n;) {
        if (reader->in_head < TLS_HEAD) {
            reader->record[reader->in_head++] = (uint8_t)bytes[i++];
            reader->in_record = reader->record_size = (size_t)reader->record[3] << 8 | reader->record[4];
        }
        if (reader->in_head < TLS_HEAD) continue;
        size_t part = n - i < reader->in_record ? n - i : reader->in_record;
        i += part;
        reader->in_record -= part;
        if (reader->in_record > 0) continue;
        reader->in_head = 0;
        reader->may_be_end = reader->record_size <= SHORT_RECORD;
    }
}

/* Add the bytes of one read. */
static void take_read(SocketReader *reader, const char *bytes, size_t n, int64_t at) {
    reader->last = at;
    reader->wire += n;
    if (reader->wire > MAX_WIRE_BYTES) {
        reader->status = TOO_LONG;
    } else if (reader->in_body) {
        take_body(reader, bytes, n, at);
    } else if (append(reader, &reader->raw, bytes, n)) {
        mark(reader, &reader->raw_marks, at, reader->raw.used);
    }
}

/* The other side has closed. */
static void take_end(SocketReader *reader) {
    reader->status = reader->in_body && reader->framing == UNTIL_CLOSE ? COMPLETE : CUT;
}

/* Read once from a ready socket. Returns the number of bytes; fewer than requested means that no more were there.
 * Called with the lock. */
static ssize_t read_once(ReadingThread *reading, SocketReader *reader, char *scratch) {
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(struct timespec))];
    struct iovec bytes = {scratch, READ_BYTES};
    struct msghdr message = {
        .msg_iov = &bytes, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    ssize_t n;
    do n = recvmsg(reader->fd, &message, MSG_DONTWAIT);
    while (n < 0 && errno == EINTR);
    int64_t now = now_ns();
    if (n < 0) {
        if (errno == EAGAIN || errno == EWOULDBLOCK) return 0;
        reader->error = errno;
        reader->status = FAILED;
    } else if (n == 0) {
        take_end(reader);
    } else {
        if (reader->taken) {
            reader->may_be_end = false;
            follow_records(reader, scratch, (size_t)n);
            if (reader->wire == 0) reader->may_be_end = true;
        }
        take_read(reader, scratch, (size_t)n, stamp(reading, reader, &message, now));
    }
    return n;
}

/* Record how late this thread runs, because chunks of a stream that arrive meanwhile are seen as one. A missed tick
 * counts with its own delay. */
static void note_lag(ReadingThread *reading) {
    uint64_t ticks;
    if (read(reading->tick, &ticks, sizeof ticks) != sizeof ticks) return;
    for (int64_t now = now_ns(); ticks > 0; ticks--, reading->due += TICK_NS) {
        /* A rest is not a delay: a tick due within it was planned for its end, and one due before it includes it. */
        int64_t began = reading->rests_until - REST_NS, meant = reading->due;
        if (meant < reading->rests_until) meant = meant < began ? meant + REST_NS : reading->rests_until;
        if (reading->n_lags < LAGS) reading->lags[reading->n_lags++] = now - meant;
    }
}

/* Wait for more chunks, so that they are read together. */
static void rest(ReadingThread *reading) {
    int64_t until = reading->rests_until = now_ns() + REST_NS;
    struct timespec end = {until / 1000000000, until % 1000000000};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &end, NULL);
}

/* Queue a reader's owner if the awaited data is there. Returns whether to wake Python. Called with the lock. */
static bool wakes(ReadingThread *reading, SocketReader *reader) {
    if (!reader->waits || !has_come(reader)) return false;
    if (reader->taken && reader->status == RUNNING && !reader->may_be_end &&
        reader->raw.used < READ_BYTES && now_ns() - reading->woken_at < TAKEN_EVERY_NS) {
        reading->holds = true;
        return false;
    }
    reader->waits = false;
    if (!reader->queued) reading->woken[reading->n_woken++] = reader->slot;
    return reader->queued = true;
}

/* Read once for a slot. Returns whether to continue, and sets `wake` if Python must be woken. */
static bool read_slot(ReadingThread *reading, uint32_t slot, uint32_t generation, bool to_the_end, char *scratch, bool *wake) {
    bool more = false;
    pthread_mutex_lock(&reading->lock);
    SocketReader *reader = reading->slots[slot].reader;
    if (reader != NULL && reading->slots[slot].generation == generation && reader->status == RUNNING) {
        ssize_t read = read_once(reading, reader, scratch);
        more = reader->status == RUNNING && (read == READ_BYTES || (to_the_end && read > 0));
        if (reader->status != RUNNING) epoll_ctl(reading->epoll, EPOLL_CTL_DEL, reader->fd, NULL);
        if (wakes(reading, reader)) *wake = true;
    }
    pthread_mutex_unlock(&reading->lock);
    return more;
}

/* Let the kernel report a socket again that has more data. */
static void hear_again(ReadingThread *reading, uint32_t slot, uint32_t generation) {
    pthread_mutex_lock(&reading->lock);
    SocketReader *reader = reading->slots[slot].reader;
    if (reader != NULL && reading->slots[slot].generation == generation && reader->status == RUNNING) {
        struct epoll_event wanted = {.events = WANTED, .data.u64 = (uint64_t)generation << 32 | slot};
        epoll_ctl(reading->epoll, EPOLL_CTL_MOD, reader->fd, &wanted);
    }
    pthread_mutex_unlock(&reading->lock);
}

/* Wake Python, also for held pieces. */
static void wake_python(ReadingThread *reading) {
    if (reading->holds) {
        reading->woken_at = INT64_MIN / 2;
        reading->holds = false;
        pthread_mutex_lock(&reading->lock);
        for (size_t i = 0; i < reading->n_slots; i++)
            if (reading->slots[i].reader != NULL) wakes(reading, reading->slots[i].reader);
        pthread_mutex_unlock(&reading->lock);
    }
    reading->woken_at = now_ns();
    eventfd_write(reading->wake, 1);
}

/* Wake Python for held pieces if they are due. Returns the maximum milliseconds to wait for sockets; -1: no limit. */
static int wake_for_pieces(ReadingThread *reading) {
    if (!reading->holds) return -1;
    int64_t left = reading->woken_at + TAKEN_EVERY_NS - now_ns();
    if (left > 0) return (int)(left / 1000000) + 1;
    wake_python(reading);
    return -1;
}

/* Fail all responses, because the thread can no longer watch their sockets. */
static void fail_all(ReadingThread *reading, int error) {
    pthread_mutex_lock(&reading->lock);
    for (size_t i = 0; i < reading->n_slots; i++) {
        SocketReader *reader = reading->slots[i].reader;
        if (reader == NULL || reader->status != RUNNING) continue;
        reader->status = FAILED;
        reader->error = error;
        wakes(reading, reader);
    }
    pthread_mutex_unlock(&reading->lock);
    eventfd_write(reading->wake, 1);
}

static void *read_all(void *given) {
    ReadingThread *reading = given;
    int nice = ask_for_the_processor();
    pthread_mutex_lock(&reading->lock);
    reading->nice = nice;
    pthread_mutex_unlock(&reading->lock);
    static _Thread_local char scratch[READ_BYTES];
    struct epoll_event ready[BATCH];
    int64_t free_since = 0; /* end of the last read and its rest */
    for (;;) {
        int64_t looked = now_ns();
        int n = epoll_wait(reading->epoll, ready, BATCH, wake_for_pieces(reading));
        if (n < 0 && errno != EINTR) {
            fail_all(reading, errno);
            return NULL;
        }
        /* In this order: if the thread is preempted between the two, stamps are late, but never too early. */
        int64_t real = clock_ns(CLOCK_REALTIME);
        int64_t found = now_ns();
        reading->epoch = real - found;
        bool wake = false, has_read = false;
        for (int i = 0; i < n; i++) {
            uint32_t slot = (uint32_t)ready[i].data.u64, generation = (uint32_t)(ready[i].data.u64 >> 32);
            if (slot == STOP) return NULL;
            if (slot == TICK) {
                pthread_mutex_lock(&reading->lock);
                note_lag(reading);
                pthread_mutex_unlock(&reading->lock);
                continue;
            }
            /* The kernel reports data once, together with a following end or urgent data, at which a read stops
             * short. */
            bool to_the_end = ready[i].events & ~(uint32_t)EPOLLIN;
            int reads = 0;
            while (read_slot(reading, slot, generation, to_the_end, scratch, &wake))
                if (++reads == READS_AT_ONCE) {
                    hear_again(reading, slot, generation);
                    break;
                }
            has_read = true;
        }
        if (wake) wake_python(reading);
        if (n == BATCH) continue;
        reading->since = looked;
        if (!has_read) continue;
        bool busy = reading->stamped && found - free_since < REST_NS;
        free_since = found;
        if (busy) {
            rest(reading);
            free_since = reading->rests_until;
        }
    }
}

/* ---- SocketReader ---- */

/* Take the lock. Returns false, with an exception, in a forked process. */
static bool lock(ReadingThread *reading) {
    if (reading->forks != forks) {
        PyErr_SetString(PyExc_RuntimeError, "a reading thread works only in the process that made it");
        return false;
    }
    pthread_mutex_lock(&reading->lock);
    return true;
}

static void release(SocketReader *reader) {
    ReadingThread *reading = reader->reading;
    if (reader->fd < 0) return;
    if (reading->forks != forks) { /* the parent continues to read: close only this process's descriptor */
        close(reader->fd);
        reader->fd = -1;
        return;
    }
    pthread_mutex_lock(&reading->lock);
    /* The thread removed the socket if the response ended; removing it again does no harm. */
    epoll_ctl(reading->epoll, EPOLL_CTL_DEL, reader->fd, NULL);
    close(reader->fd);
    reader->fd = -1;
    reading->slots[reader->slot].reader = NULL;
    reading->slots[reader->slot].generation++;
    size_t kept = 0;
    for (size_t i = 0; i < reading->n_woken; i++)
        if (reading->woken[i] != reader->slot) reading->woken[kept++] = reading->woken[i];
    reading->n_woken = kept;
    pthread_mutex_unlock(&reading->lock);
}

static void reader_dealloc(SocketReader *reader) {
    if (reader->reading != NULL) release(reader);
    free(reader->raw.bytes);
    free(reader->body.bytes);
    free(reader->raw_marks.marks);
    free(reader->body_marks.marks);
    Py_XDECREF(reader->failure);
    Py_XDECREF(reader->owner);
    Py_XDECREF(reader->reading);
    PyTypeObject *type = Py_TYPE(reader);
    type->tp_free(reader);
    Py_DECREF(type);
}

static PyObject *reader_want(SocketReader *reader, PyObject *args) {
    Py_ssize_t beyond;
    if (!PyArg_ParseTuple(args, "n", &beyond) || !lock(reader->reading)) return NULL;
    reader->for_end = beyond < 0;
    reader->beyond = beyond < 0 ? 0 : (size_t)beyond;
    bool come = has_come(reader);
    reader->waits = !come;
    pthread_mutex_unlock(&reader->reading->lock);
    return PyBool_FromLong(come);
}

static PyObject *reader_head(SocketReader *reader, PyObject *args) {
    Py_ssize_t from;
    if (!PyArg_ParseTuple(args, "n", &from) || !lock(reader->reading)) return NULL;
    size_t start = from < 0 ? 0 : (size_t)from > reader->raw.used ? reader->raw.used : (size_t)from;
    PyObject *bytes = PyBytes_FromStringAndSize(reader->raw.bytes + start, (Py_ssize_t)(reader->raw.used - start));
    pthread_mutex_unlock(&reader->reading->lock);
    return bytes;
}

static PyObject *reader_stamp(SocketReader *reader, PyObject *args) {
    Py_ssize_t position;
    if (!PyArg_ParseTuple(args, "n", &position) || !lock(reader->reading)) return NULL;
    int64_t at = reader->last;
    for (size_t i = 0; i < reader->raw_marks.used; i++)
        if ((size_t)position <= reader->raw_marks.marks[i].end) {
            at = reader->raw_marks.marks[i].at;
            break;
        }
    pthread_mutex_unlock(&reader->reading->lock);
    return PyLong_FromLongLong(at);
}

static PyObject *reader_begin_body(SocketReader *reader, PyObject *args) {
    Py_ssize_t from;
    long long framing;
    if (!PyArg_ParseTuple(args, "nL", &from, &framing)) return NULL;
    if (from < 0 || framing < UNTIL_CLOSE) {
        PyErr_SetString(PyExc_ValueError, "invalid position or framing");
        return NULL;
    }
    if (!lock(reader->reading)) return NULL;
    reader->in_body = true;
    reader->framing = framing;
    enum status before = reader->status;
    reader->status = framing == 0 ? COMPLETE : RUNNING;
    size_t start = (size_t)from;
    for (size_t i = 0; i < reader->raw_marks.used; i++) {
        Mark at = reader->raw_marks.marks[i];
        if (at.end <= start) continue;
        if (reader->status == RUNNING)
            take_body(reader, reader->raw.bytes + start, at.end - start, at.at);
        else
            reader->surplus = true;
        start = at.end;
    }
    /* The response may have ended before Python knew how its body is framed. */
    if (reader->status == RUNNING && before != RUNNING)
        reader->status = before == CUT && framing == UNTIL_CLOSE ? COMPLETE : before;
    if (reader->status != RUNNING && reader->fd >= 0) epoll_ctl(reader->reading->epoll, EPOLL_CTL_DEL, reader->fd, NULL);
    pthread_mutex_unlock(&reader->reading->lock);
    Py_RETURN_NONE;
}

/* After feeding data, release the lock and set the owner if the awaited data is there. */
static PyObject *tell_owner(SocketReader *reader) {
    bool come = reader->waits && has_come(reader);
    if (come) reader->waits = false;
    pthread_mutex_unlock(&reader->reading->lock);
    return come ? PyObject_CallMethod(reader->owner, "set", NULL) : Py_NewRef(Py_None);
}

static PyObject *reader_feed(SocketReader *reader, PyObject *args) {
    const char *bytes;
    Py_ssize_t n;
    long long at;
    if (!PyArg_ParseTuple(args, "y#L", &bytes, &n, &at) || !lock(reader->reading)) return NULL;
    if (reader->status == RUNNING) take_read(reader, bytes, (size_t)n, at);
    else reader->surplus = true;
    return tell_owner(reader);
}

static PyObject *reader_end(SocketReader *reader, PyObject *Py_UNUSED(ignored)) {
    if (!lock(reader->reading)) return NULL;
    if (reader->status == RUNNING) take_end(reader);
    return tell_owner(reader);
}

static PyObject *reader_fail(SocketReader *reader, PyObject *error) {
    if (!lock(reader->reading)) return NULL;
    if (reader->status == RUNNING) {
        reader->status = FAILED;
        reader->failure = Py_NewRef(error);
    }
    return tell_owner(reader);
}

/* Make a tuple of the bytes and the stamps and ends of the first n marks. Takes ownership of the bytes and the marks.
 */
static PyObject *with_marks(PyObject *bytes, Mark *marks, size_t n) {
    PyObject *stamps = PyList_New((Py_ssize_t)n), *ends = PyList_New((Py_ssize_t)n);
    if (bytes == NULL || marks == NULL || stamps == NULL || ends == NULL) {
        free(marks);
        Py_XDECREF(bytes);
        Py_XDECREF(stamps);
        Py_XDECREF(ends);
        return PyErr_Occurred() ? NULL : PyErr_NoMemory();
    }
    for (size_t i = 0; i < n; i++) {
        PyObject *at = PyLong_FromLongLong(marks[i].at), *end = PyLong_FromSize_t(marks[i].end);
        /* A list may contain NULL if it is only discarded, as it is after an exception. */
        PyList_SET_ITEM(stamps, (Py_ssize_t)i, at);
        PyList_SET_ITEM(ends, (Py_ssize_t)i, end);
    }
    free(marks);
    if (PyErr_Occurred()) {
        Py_DECREF(bytes);
        Py_DECREF(stamps);
        Py_DECREF(ends);
        return NULL;
    }
    return Py_BuildValue("(NNN)", bytes, stamps, ends);
}

static Mark *copied(const Marks *marks, size_t n) {
    Mark *copy = malloc(n * sizeof *copy + 1);
    if (copy != NULL && n) memcpy(copy, marks->marks, n * sizeof *copy);
    return copy;
}

static PyObject *reader_collected(SocketReader *reader, PyObject *Py_UNUSED(ignored)) {
    /* Copy with the lock, because the thread may reallocate the buffers; make the lists without it. */
    if (!lock(reader->reading)) return NULL;
    bool ended = reader->status != RUNNING; /* then the buffers are final, and the thread need not wait for the copy */
    if (ended) pthread_mutex_unlock(&reader->reading->lock);
    size_t n = reader->body_marks.used;
    PyObject *body = PyBytes_FromStringAndSize(reader->body.bytes, (Py_ssize_t)reader->body.used);
    Mark *marks = copied(&reader->body_marks, n);
    if (!ended) pthread_mutex_unlock(&reader->reading->lock);
    return with_marks(body, marks, n);
}

static PyObject *reader_take(SocketReader *reader, PyObject *Py_UNUSED(ignored)) {
    if (!lock(reader->reading)) return NULL;
    if (!reader->taken) follow_records(reader, reader->raw.bytes, reader->raw.used); /* data from before the call */
    reader->taken = true;
    size_t n = 0, size = 0;
    while (n < reader->raw_marks.used && size < READ_BYTES) size = reader->raw_marks.marks[n++].end;
    PyObject *bytes = PyBytes_FromStringAndSize(reader->raw.bytes, (Py_ssize_t)size);
    Mark *marks = copied(&reader->raw_marks, n);
    if (bytes != NULL && marks != NULL) {
        reader->raw.used -= size;
        reader->raw_marks.used -= n;
        if (reader->raw.used) memmove(reader->raw.bytes, reader->raw.bytes + size, reader->raw.used);
        for (size_t i = 0; i < reader->raw_marks.used; i++) {
            reader->raw_marks.marks[i] = reader->raw_marks.marks[i + n];
            reader->raw_marks.marks[i].end -= size;
        }
        reader->for_end = false;
        reader->beyond = 0;
        reader->waits = !has_come(reader);
    }
    pthread_mutex_unlock(&reader->reading->lock);
    return with_marks(bytes, marks, n);
}

static PyObject *reader_close(SocketReader *reader, PyObject *Py_UNUSED(ignored)) {
    release(reader);
    Py_RETURN_NONE;
}

static PyObject *reader_status(SocketReader *reader, void *Py_UNUSED(closure)) {
    static const char *names[] = {"running", "complete", "cut", "broken", "too long", "failed"};
    if (!lock(reader->reading)) return NULL;
    enum status status = reader->status;
    pthread_mutex_unlock(&reader->reading->lock);
    return PyUnicode_FromString(names[status]);
}

static PyObject *reader_failure(SocketReader *reader, void *Py_UNUSED(closure)) {
    if (!lock(reader->reading)) return NULL;
    int error = reader->error;
    pthread_mutex_unlock(&reader->reading->lock);
    if (reader->failure != NULL) return Py_NewRef(reader->failure);
    return PyObject_CallFunction(PyExc_OSError, "is", error, strerror(error));
}

static PyObject *reader_last(SocketReader *reader, void *Py_UNUSED(closure)) {
    if (!lock(reader->reading)) return NULL;
    int64_t last = reader->last;
    pthread_mutex_unlock(&reader->reading->lock);
    return PyLong_FromLongLong(last);
}

static PyObject *reader_surplus(SocketReader *reader, void *Py_UNUSED(closure)) {
    if (!lock(reader->reading)) return NULL;
    bool surplus = reader->surplus;
    pthread_mutex_unlock(&reader->reading->lock);
    return PyBool_FromLong(surplus);
}

static PyMethodDef reader_methods[] = {
    {"want", (PyCFunction)reader_want, METH_VARARGS, 
     "Wait for more than so many bytes of the head (-1: for the end). Returns True if they are there."},
    {"head", (PyCFunction)reader_head, METH_VARARGS, "The bytes from a position on, before begin_body."},
    {"stamp", (PyCFunction)reader_stamp, METH_VARARGS, "The stamp of the read that brought the head to a position."},
    {"begin_body", (PyCFunction)reader_begin_body, METH_VARARGS, "Set where the body begins, and its framing."},
    {"collected", (PyCFunction)reader_collected, METH_NOARGS, "The body so far, and the stamp and end of each read."},
    {"take", (PyCFunction)reader_take, METH_NOARGS, 
     "Take the bytes that arrived since the last call, about 64 KiB at most, like `collected`; wait for more."},
    {"feed", (PyCFunction)reader_feed, METH_VARARGS, "Add bytes with the stamp of their read."},
    {"end", (PyCFunction)reader_end, METH_NOARGS, "Note that the other side has closed."},
    {"fail", (PyCFunction)reader_fail, METH_O, "Note the OSError that ended the stream."},
    {"close", (PyCFunction)reader_close, METH_NOARGS, "Stop reading."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef reader_values[] = {
    {"status", (getter)reader_status, NULL, "running, complete, cut, broken, too long or failed", NULL},
    {"failure", (getter)reader_failure, NULL, "the OSError, if the status is failed", NULL},
    {"last", (getter)reader_last, NULL, "stamp of the last read, 0 before the first", NULL},
    {"surplus", (getter)reader_surplus, NULL, "whether bytes arrived after the end", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot reader_slots[] = {
    {Py_tp_dealloc, reader_dealloc},
    {Py_tp_methods, reader_methods},
    {Py_tp_getset, reader_values},
    {Py_tp_doc, "Reads one response from a socket."},
    {0, NULL},
};

static PyType_Spec reader_spec = {
    .name = "asr_load.http._socket_reader.SocketReader",
    .basicsize = sizeof(SocketReader),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = reader_slots,
};

static PyTypeObject *reader_type;

/* ---- ReadingThread ---- */

static PyObject *thread_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    if (!PyArg_ParseTuple(args, "") || (kwargs != NULL && PyDict_Size(kwargs))) return NULL;
    ReadingThread *reading = (ReadingThread *)type->tp_alloc(type, 0);
    if (reading == NULL) return NULL;
    reading->epoll = reading->wake = reading->stop = reading->tick = -1;
    pthread_mutex_init(&reading->lock, NULL);
    reading->forks = forks;
    reading->due = now_ns() + TICK_NS;
    struct itimerspec ticks = {
        .it_value = {reading->due / 1000000000, reading->due % 1000000000}, .it_interval = {0, TICK_NS}};
    reading->tick = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    reading->epoll = epoll_create1(EPOLL_CLOEXEC);
    reading->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    reading->stop = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct epoll_event stop = {.events = EPOLLIN, .data.u64 = STOP}, tick = {.events = EPOLLIN, .data.u64 = TICK};
    if (reading->epoll < 0 || reading->wake < 0 || reading->stop < 0 || reading->tick < 0 ||
        timerfd_settime(reading->tick, TFD_TIMER_ABSTIME, &ticks, NULL) < 0 ||
        epoll_ctl(reading->epoll, EPOLL_CTL_ADD, reading->stop, &stop) < 0 ||
        epoll_ctl(reading->epoll, EPOLL_CTL_ADD, reading->tick, &tick) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        Py_DECREF(reading);
        return NULL;
    }
    /* Leave signals to the interpreter's thread. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_create(&reading->thread, NULL, read_all, reading);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed) {
        errno = failed;
        PyErr_SetFromErrno(PyExc_OSError);
        Py_DECREF(reading);
        return NULL;
    }
    reading->running = true;
    return (PyObject *)reading;
}

static PyObject *thread_close(ReadingThread *reading, PyObject *Py_UNUSED(ignored)) {
    if (reading->running && reading->forks == forks) { /* a child has no thread, and must not stop its parent's */
        reading->running = false;
        eventfd_write(reading->stop, 1);
        Py_BEGIN_ALLOW_THREADS
        pthread_join(reading->thread, NULL);
        Py_END_ALLOW_THREADS
    }
    Py_RETURN_NONE;
}

static void thread_dealloc(ReadingThread *reading) {
    Py_XDECREF(thread_close(reading, NULL));
    if (reading->epoll >= 0) close(reading->epoll);
    if (reading->wake >= 0) close(reading->wake);
    if (reading->stop >= 0) close(reading->stop);
    if (reading->tick >= 0) close(reading->tick);
    pthread_mutex_destroy(&reading->lock);
    free(reading->slots);
    free(reading->woken);
    PyTypeObject *type = Py_TYPE(reading);
    type->tp_free(reading);
    Py_DECREF(type);
}

static PyObject *thread_fileno(ReadingThread *reading, PyObject *Py_UNUSED(ignored)) { return PyLong_FromLong(reading->wake); }

/* A free slot, or -1 if memory runs out. Called with the lock. */
static long free_slot(ReadingThread *reading) {
    for (size_t i = 0; i < reading->n_slots; i++)
        if (reading->slots[i].reader == NULL) return (long)i;
    size_t room = reading->n_slots ? 2 * reading->n_slots : 64;
    void *slots = realloc(reading->slots, room * sizeof *reading->slots);
    if (slots == NULL) return -1;
    reading->slots = slots;
    uint32_t *woken = realloc(reading->woken, room * sizeof *woken);
    if (woken == NULL) return -1;
    reading->woken = woken;
    memset(reading->slots + reading->n_slots, 0, (room - reading->n_slots) * sizeof *reading->slots);
    long first = (long)reading->n_slots;
    reading->n_slots = room;
    return first;
}

static SocketReader *new_reader(ReadingThread *reading, PyObject *owner) {
    SocketReader *reader = (SocketReader *)reader_type->tp_alloc(reader_type, 0);
    if (reader == NULL) return NULL;
    reader->fd = -1;
    reader->owner = Py_NewRef(owner);
    reader->reading = (ReadingThread *)Py_NewRef((PyObject *)reading);
    return reader;
}

static PyObject *thread_collector(ReadingThread *reading, PyObject *owner) { return (PyObject *)new_reader(reading, owner); }

static PyObject *thread_read_from(ReadingThread *reading, PyObject *args) {
    int fd;
    PyObject *owner;
    if (!PyArg_ParseTuple(args, "iO", &fd, &owner)) return NULL;
    SocketReader *reader = new_reader(reading, owner);
    if (reader == NULL) return NULL;
    int own = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (own < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        Py_DECREF(reader);
        return NULL;
    }
    int on = 1; /* if this fails, reads are stamped when they return */
    setsockopt(own, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on);
    if (!lock(reading)) {
        close(own);
        Py_DECREF(reader);
        return NULL;
    }
    long slot = free_slot(reading);
    int error = ENOMEM;
    if (slot >= 0) {
        reader->fd = own;
        reader->out_of_order = out_of_order(own);
        reader->slot = (uint32_t)slot;
        reading->slots[slot].reader = reader;
        uint64_t name = (uint64_t)reading->slots[slot].generation << 32 | (uint32_t)slot;
        struct epoll_event wanted = {.events = WANTED, .data.u64 = name};
        error = epoll_ctl(reading->epoll, EPOLL_CTL_ADD, own, &wanted) == 0 ? 0 : errno;
    }
    pthread_mutex_unlock(&reading->lock);
    if (error) {
        if (slot < 0) close(own); /* otherwise the reader owns it and closes it */
        errno = error;
        PyErr_SetFromErrno(PyExc_OSError);
        Py_DECREF(reader);
        return NULL;
    }
    return (PyObject *)reader;
}

static PyObject *thread_woken(ReadingThread *reading, PyObject *Py_UNUSED(ignored)) {
    eventfd_t count;
    eventfd_read(reading->wake, &count);
    PyObject *owners = PyList_New(0);
    if (owners == NULL) return NULL;
    if (!lock(reading)) {
        Py_DECREF(owners);
        return NULL;
    }
    for (size_t i = 0; i < reading->n_woken; i++) {
        SocketReader *reader = reading->slots[reading->woken[i]].reader;
        if (reader == NULL) continue;
        reader->queued = false;
        if (PyList_Append(owners, reader->owner) < 0) PyErr_Clear();
    }
    reading->n_woken = 0;
    pthread_mutex_unlock(&reading->lock);
    return owners;
}

static PyObject *thread_lags(ReadingThread *reading, PyObject *Py_UNUSED(ignored)) {
    int64_t lags[LAGS];
    if (!lock(reading)) return NULL;
    size_t n = reading->n_lags;
    memcpy(lags, reading->lags, n * sizeof *lags);
    reading->n_lags = 0;
    pthread_mutex_unlock(&reading->lock);
    PyObject *list = PyList_New((Py_ssize_t)n);
    for (size_t i = 0; list != NULL && i < n; i++) {
        PyObject *lag = PyLong_FromLongLong(lags[i]);
        if (lag == NULL) Py_CLEAR(list);
        else PyList_SET_ITEM(list, (Py_ssize_t)i, lag);
    }
    return list;
}

static PyObject *thread_nice(ReadingThread *reading, void *Py_UNUSED(closure)) {
    if (!lock(reading)) return NULL;
    int nice = reading->nice;
    pthread_mutex_unlock(&reading->lock);
    return PyLong_FromLong(nice);
}

static PyGetSetDef thread_values[] = {
    {"nice", (getter)thread_nice, NULL, "the thread's nice value: -15 if the process may set it", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef thread_methods[] = {
    {"fileno", (PyCFunction)thread_fileno, METH_NOARGS, "A descriptor that is readable when `woken` has owners."},
    {"read_from", (PyCFunction)thread_read_from, METH_VARARGS, 
     "Read a socket, by its descriptor, from now on; `woken` returns its owner."},
    {"collector", (PyCFunction)thread_collector, METH_O, "Make a reader without a socket, to be fed."},
    {"woken", (PyCFunction)thread_woken, METH_NOARGS, "The owners whose awaited data has arrived."},
    {"lags", (PyCFunction)thread_lags, METH_NOARGS, 
     "How late the thread ran at each 20 ms tick since the last call, in ns; at most 1024 ticks."},
    {"close", (PyCFunction)thread_close, METH_NOARGS, "Stop the thread."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot thread_slots[] = {
    {Py_tp_new, thread_new},
    {Py_tp_dealloc, thread_dealloc},
    {Py_tp_methods, thread_methods},
    {Py_tp_getset, thread_values},
    {Py_tp_doc, "A thread that reads and stamps sockets."},
    {0, NULL},
};

static PyType_Spec thread_spec = {
    .name = "asr_load.http._socket_reader.ReadingThread",
    .basicsize = sizeof(ReadingThread),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = thread_slots,
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_socket_reader", "See socket_reader.py.", -1, NULL, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__socket_reader(void) {
    PyObject *made = PyModule_Create(&module);
    if (made == NULL) return NULL;
    watch_forks();
    reader_type = (PyTypeObject *)PyType_FromSpec(&reader_spec);
    PyObject *thread_type = PyType_FromSpec(&thread_spec);
    if (reader_type == NULL || thread_type == NULL || PyModule_AddObject(made, "ReadingThread", thread_type) < 0) {
        Py_XDECREF(reader_type);
        Py_XDECREF(thread_type);
        Py_DECREF(made);
        return NULL;
    }
    return made;
}
