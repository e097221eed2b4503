/* Sends texts on schedule in a separate thread: the compiled part of chunk_sender.py, which explains why.
 *
 * The thread never takes the interpreter's lock. It keeps the streams in a heap by the time of their next chunk, sleeps
 * until the first is due, and then composes that chunk, stamps it with CLOCK_MONOTONIC (time.perf_counter() on Linux)
 * and sends it. If a socket accepts no more data, epoll watches it, and its stream continues later.
 *
 * The data of a stream is in immutable Python objects: nothing is copied before it is due, and streams share objects.
 * The thread holds no references to them, so a stream can only be freed while the thread is not sending it. One lock
 * protects all streams. It is never held during a system call that sends or waits, so Python waits for it only for a few
 * instructions, and for the end of a stream only for one send.
 */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <fcntl.h>
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

#define SECOND 1000000000
#define BATCH 256        /* chunks to send between two looks at blocked sockets */
#define SLACK_NS 100000  /* chunks due this close together are sent together: a wake-up costs as much as a send */
#define MAX_LINE 96      /* maximum length of a chunk's size and its stamp */

enum { STOP = 0, TIMER = 1, FIRST_SERIAL = 2 }; /* data of an epoll event */
enum place { NOWHERE, DUE, BLOCKED, FINISHED };

typedef struct ChunkSender ChunkSender;

typedef struct {
    PyObject_HEAD
    ChunkSender *sender;
    PyObject *owner;
    PyObject *head, *opening, *before, *texts, *after, *offsets; /* bytes; `texts`: a tuple of bytes */
    int fd; /* a duplicate, so that nobody else can close it or reuse its number for another socket */
    uint64_t serial;
    int64_t start;
    size_t n;
    int64_t *stamps;
    /* The lock protects the following fields, except while the thread sends this stream. */
    enum place place;
    size_t index;   /* in the list of that place */
    int64_t due;    /* when chunk `next` is due */
    size_t next;    /* the chunk to send, possibly sent in part */
    size_t partial; /* bytes of it already sent */
    int error;
} Stream;

typedef struct {
    Stream **streams;
    size_t used;
} List;

struct ChunkSender {
    PyObject_HEAD
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t sent;
    int epoll, timer, news, stop;
    bool running;
    unsigned forks; /* value of the global counter when the sender was made */
    uint64_t serials;
    List due, blocked, finished; /* `due` is a heap; each has room for all streams */
    size_t n_streams, room;
    Stream *current; /* the stream that the thread is sending without the lock */
    int waiting;     /* number of threads that wait for it to finish that */
    int64_t armed;   /* when the thread wakes; 0 while it is awake */
    char *line;      /* the thread's buffer for composing chunks */
    size_t line_room;
};

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * SECOND + now.tv_nsec;
}

/* ---- Lists; call these with the lock ---- */

static void put(List *list, size_t index, Stream *stream) {
    list->streams[index] = stream;
    stream->index = index;
}

/* Restore the heap's order for the stream at an index. */
static void settle(List *heap, size_t index) {
    Stream *stream = heap->streams[index];
    for (; index > 0 && heap->streams[(index - 1) / 2]->due > stream->due; index = (index - 1) / 2)
        put(heap, index, heap->streams[(index - 1) / 2]);
    for (;;) {
        size_t child = 2 * index + 1;
        if (child + 1 < heap->used && heap->streams[child + 1]->due < heap->streams[child]->due) child++;
        if (child >= heap->used || heap->streams[child]->due >= stream->due) break;
        put(heap, index, heap->streams[child]);
        index = child;
    }
    put(heap, index, stream);
}

static void take_out(ChunkSender *sender, Stream *stream) {
    List *list = stream->place == DUE ? &sender->due : stream->place == BLOCKED ? &sender->blocked : &sender->finished;
    if (stream->place == NOWHERE) return;
    Stream *last = list->streams[--list->used];
    if (last != stream) {
        put(list, stream->index, last);
        if (stream->place == DUE) settle(list, last->index);
    }
    stream->place = NOWHERE;
}

static void put_in(ChunkSender *sender, Stream *stream, enum place place) {
    List *list = place == DUE ? &sender->due : place == BLOCKED ? &sender->blocked : &sender->finished;
    take_out(sender, stream);
    put(list, list->used++, stream);
    stream->place = place;
    if (place == DUE) settle(list, stream->index);
}

/* ---- The thread ---- */

static char *add(char *to, PyObject *bytes) {
    size_t n = (size_t)PyBytes_GET_SIZE(bytes);
    memcpy(to, PyBytes_AS_STRING(bytes), n);
    return to + n;
}

/* Append a number with at least `least` digits. printf would take a tenth of the time of a chunk. */
static char *add_number(char *to, uint64_t number, unsigned base, int least) {
    char digits[20];
    int n = 0;
    for (; number > 0 || n < least; number /= base) digits[n++] = "0123456789abcdef"[number % base];
    while (n > 0) *to++ = digits[--n];
    return to;
}

static char *add_line_end(char *to) {
    memcpy(to, "\r\n", 2);
    return to + 2;
}

static size_t size_of(PyObject *bytes) { return (size_t)PyBytes_GET_SIZE(bytes); }

static bool has_room(ChunkSender *sender, size_t size) {
    if (size <= sender->line_room) return true;
    char *grown = realloc(sender->line, size);
    if (grown == NULL) return false;
    sender->line = grown;
    sender->line_room = size;
    return true;
}

/* Compose chunk `next` in the sender's buffer: with HTTP's framing (RFC 9112, section 7.1), or unchanged if it is ready
 * to send. Returns its length; 0 if memory runs out. */
static size_t compose(ChunkSender *sender, const Stream *stream, int64_t stamp) {
    PyObject *text = PyTuple_GET_ITEM(stream->texts, (Py_ssize_t)stream->next);
    if (stream->before == Py_None) {
        if (!has_room(sender, size_of(text))) return 0;
        return (size_t)(add(sender->line, text) - sender->line);
    }
    bool first = stream->next == 0;
    char comment[MAX_LINE] = ": sent_at=";
    char *comment_end = add_number(comment + strlen(comment), (uint64_t)(stamp / SECOND), 10, 1);
    *comment_end++ = '.';
    comment_end = add_number(comment_end, (uint64_t)(stamp % SECOND), 10, 9);
    *comment_end++ = '\n';
    size_t comment_size = (size_t)(comment_end - comment);
    size_t head = first ? size_of(stream->head) : 0;
    size_t data = (first ? size_of(stream->opening) : 0) + comment_size + size_of(stream->before) + size_of(text) +
                  size_of(stream->after);
    if (!has_room(sender, head + data + MAX_LINE)) return 0;
    char *end = sender->line;
    if (first) end = add(end, stream->head);
    end = add_line_end(add_number(end, data, 16, 1));
    if (first) end = add(end, stream->opening);
    memcpy(end, comment, comment_size);
    end = add_line_end(add(add(add(end + comment_size, stream->before), text), stream->after));
    return (size_t)(end - sender->line);
}

/* Send as much of a chunk as the socket accepts, without the lock. Returns errno, or 0. If no byte was sent, the next
 * try composes and stamps the chunk anew; a chunk sent in part keeps its stamp, because the sent bytes contain it. */
static int send_chunk(ChunkSender *sender, Stream *stream, int64_t *now) {
    *now = now_ns();
    if (stream->partial == 0) stream->stamps[stream->next] = *now;
    size_t size = compose(sender, stream, stream->stamps[stream->next]);
    if (size == 0) return ENOMEM;
    for (;;) {
        ssize_t n = send(stream->fd, sender->line + stream->partial, size - stream->partial, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return errno;
        stream->partial += (size_t)n;
        if (stream->partial < size) continue; /* the next send fails with EAGAIN */
        stream->partial = 0;
        return 0;
    }
}

static int64_t due_of(const Stream *stream, size_t chunk) {
    int64_t offset;
    memcpy(&offset, PyBytes_AS_STRING(stream->offsets) + chunk * sizeof offset, sizeof offset);
    return stream->start + offset;
}

/* Send the chunk that is due first. Returns its stamp. Called with the lock, which it releases meanwhile. */
static int64_t send_first(ChunkSender *sender) {
    Stream *stream = sender->current = sender->due.streams[0];
    pthread_mutex_unlock(&sender->lock);
    int64_t now;
    int error = send_chunk(sender, stream, &now);
    pthread_mutex_lock(&sender->lock);
    sender->current = NULL;
    if (sender->waiting) pthread_cond_broadcast(&sender->sent);
    if (error == EAGAIN || error == EWOULDBLOCK) {
        struct epoll_event writable = {.events = EPOLLOUT | EPOLLONESHOT, .data.u64 = stream->serial};
        error = epoll_ctl(sender->epoll, EPOLL_CTL_ADD, stream->fd, &writable) < 0 ? errno : 0;
        if (!error) put_in(sender, stream, BLOCKED);
    } else if (!error && ++stream->next < stream->n) {
        stream->due = due_of(stream, stream->next);
        settle(&sender->due, stream->index);
    } else if (!error) {
        put_in(sender, stream, FINISHED);
    }
    if (error) {
        stream->error = error;
        put_in(sender, stream, FINISHED);
    }
    return now;
}

/* Schedule a blocked stream whose socket is writable again or broken, as the next send shows. Called with the lock. */
static void unblock(ChunkSender *sender, uint64_t serial) {
    for (size_t i = 0; i < sender->blocked.used; i++) {
        Stream *stream = sender->blocked.streams[i];
        if (stream->serial != serial) continue;
        epoll_ctl(sender->epoll, EPOLL_CTL_DEL, stream->fd, NULL);
        put_in(sender, stream, DUE);
        return;
    }
}

/* Set the timer that wakes the thread. Called with the lock. */
static void arm(ChunkSender *sender, int64_t at) {
    struct itimerspec spec = {.it_value = {at / SECOND, at % SECOND}};
    sender->armed = at;
    timerfd_settime(sender->timer, TFD_TIMER_ABSTIME, &spec, NULL);
}

static void *send_all(void *given) {
    ChunkSender *sender = given;
    ask_for_the_processor();
    struct epoll_event ready[BATCH];
    pthread_mutex_lock(&sender->lock);
    for (;;) {
        int64_t now = now_ns();
        for (int i = 0; i < BATCH && sender->due.used && sender->due.streams[0]->due <= now; i++) now = send_first(sender);
        bool more = sender->due.used && sender->due.streams[0]->due <= now;
        if (!more && sender->due.used) {
            int64_t due = sender->due.streams[0]->due;
            arm(sender, due > now + SLACK_NS ? due : now + SLACK_NS);
        } else if (!more) {
            sender->armed = INT64_MAX;
        }
        bool news = sender->finished.used > 0;
        pthread_mutex_unlock(&sender->lock);
        if (news) eventfd_write(sender->news, 1);
        int n = epoll_wait(sender->epoll, ready, BATCH, more ? 0 : -1), error = errno;
        pthread_mutex_lock(&sender->lock);
        sender->armed = 0;
        if (n < 0 && error != EINTR) { /* the thread can no longer watch sockets */
            while (sender->due.used + sender->blocked.used) {
                Stream *stream = sender->due.used ? sender->due.streams[0] : sender->blocked.streams[0];
                stream->error = error;
                put_in(sender, stream, FINISHED);
            }
            pthread_mutex_unlock(&sender->lock);
            eventfd_write(sender->news, 1);
            return NULL;
        }
        for (int i = 0; i < n; i++) {
            if (ready[i].data.u64 == STOP) {
                pthread_mutex_unlock(&sender->lock);
                return NULL;
            }
            if (ready[i].data.u64 != TIMER) unblock(sender, ready[i].data.u64);
        }
    }
}

/* ---- Stream ---- */

/* Take the lock. Returns false, with an exception, in a forked process. */
static bool lock(ChunkSender *sender) {
    if (sender->forks != forks) {
        PyErr_SetString(PyExc_RuntimeError, "a sender works only in the process that made it");
        return false;
    }
    pthread_mutex_lock(&sender->lock);
    return true;
}

/* Take the lock while the thread is not sending this stream. */
static bool lock_for(Stream *stream) {
    ChunkSender *sender = stream->sender;
    if (!lock(sender)) return false;
    while (sender->current == stream) {
        sender->waiting++;
        pthread_cond_wait(&sender->sent, &sender->lock);
        sender->waiting--;
    }
    return true;
}

static void release(Stream *stream) {
    ChunkSender *sender = stream->sender;
    if (stream->fd < 0) return;
    if (sender->forks != forks) { /* the parent continues to send: close only this process's descriptor */
        close(stream->fd);
        stream->fd = -1;
        return;
    }
    lock_for(stream);
    /* Closing our descriptor does not remove the socket from epoll while another descriptor is open. */
    if (stream->place == BLOCKED) epoll_ctl(sender->epoll, EPOLL_CTL_DEL, stream->fd, NULL);
    take_out(sender, stream);
    sender->n_streams--;
    pthread_mutex_unlock(&sender->lock);
    close(stream->fd);
    stream->fd = -1;
}

static void stream_dealloc(Stream *stream) {
    if (stream->sender != NULL) release(stream);
    free(stream->stamps);
    Py_XDECREF(stream->head);
    Py_XDECREF(stream->opening);
    Py_XDECREF(stream->before);
    Py_XDECREF(stream->texts);
    Py_XDECREF(stream->after);
    Py_XDECREF(stream->offsets);
    Py_XDECREF(stream->owner);
    Py_XDECREF(stream->sender);
    PyTypeObject *type = Py_TYPE(stream);
    type->tp_free(stream);
    Py_DECREF(type);
}

static PyObject *stream_close(Stream *stream, PyObject *Py_UNUSED(ignored)) {
    release(stream);
    Py_RETURN_NONE;
}

static PyObject *stream_sent_at(Stream *stream, void *Py_UNUSED(closure)) {
    /* Stamps of sent chunks do not change, so only their number needs the lock. */
    if (!lock_for(stream)) return NULL;
    size_t n = stream->next + (stream->partial > 0);
    pthread_mutex_unlock(&stream->sender->lock);
    PyObject *list = PyList_New((Py_ssize_t)n);
    for (size_t i = 0; list != NULL && i < n; i++) {
        PyObject *seconds = PyFloat_FromDouble((double)stream->stamps[i] / 1e9);
        if (seconds == NULL) Py_CLEAR(list);
        else PyList_SET_ITEM(list, (Py_ssize_t)i, seconds);
    }
    return list;
}

static PyObject *stream_error(Stream *stream, void *Py_UNUSED(closure)) {
    if (!lock_for(stream)) return NULL;
    int error = stream->error;
    pthread_mutex_unlock(&stream->sender->lock);
    return PyLong_FromLong(error);
}

static PyMethodDef stream_methods[] = {
    {"close", (PyCFunction)stream_close, METH_NOARGS, "Stop sending."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef stream_values[] = {
    {"sent_at", (getter)stream_sent_at, NULL, "when sending of each chunk so far began, in seconds", NULL},
    {"error", (getter)stream_error, NULL, "errno of the failed send; 0 if none failed", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot stream_slots[] = {
    {Py_tp_dealloc, stream_dealloc},
    {Py_tp_methods, stream_methods},
    {Py_tp_getset, stream_values},
    {Py_tp_doc, "Chunks to send on one socket."},
    {0, NULL},
};

static PyType_Spec stream_spec = {
    .name = "asr_server._chunk_sender.Stream",
    .basicsize = sizeof(Stream),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = stream_slots,
};

static PyTypeObject *stream_type;

/* ---- ChunkSender ---- */

static PyObject *sender_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    if (!PyArg_ParseTuple(args, "") || (kwargs != NULL && PyDict_Size(kwargs))) return NULL;
    ChunkSender *sender = (ChunkSender *)type->tp_alloc(type, 0);
    if (sender == NULL) return NULL;
    pthread_mutex_init(&sender->lock, NULL);
    pthread_cond_init(&sender->sent, NULL);
    sender->serials = FIRST_SERIAL;
    sender->forks = forks;
    sender->epoll = epoll_create1(EPOLL_CLOEXEC);
    sender->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    sender->news = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    sender->stop = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    /* The timer is edge-triggered, so that it need not be read. */
    struct epoll_event stop = {.events = EPOLLIN, .data.u64 = STOP}, timer = {.events = EPOLLIN | EPOLLET, .data.u64 = TIMER};
    if (sender->epoll < 0 || sender->timer < 0 || sender->news < 0 || sender->stop < 0 ||
        epoll_ctl(sender->epoll, EPOLL_CTL_ADD, sender->stop, &stop) < 0 ||
        epoll_ctl(sender->epoll, EPOLL_CTL_ADD, sender->timer, &timer) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        Py_DECREF(sender);
        return NULL;
    }
    /* Leave signals to the interpreter's thread. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_create(&sender->thread, NULL, send_all, sender);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed) {
        errno = failed;
        PyErr_SetFromErrno(PyExc_OSError);
        Py_DECREF(sender);
        return NULL;
    }
    sender->running = true;
    return (PyObject *)sender;
}

static PyObject *sender_close(ChunkSender *sender, PyObject *Py_UNUSED(ignored)) {
    if (sender->running && sender->forks == forks) { /* a forked child has no thread, and must not stop its parent's */
        sender->running = false;
        eventfd_write(sender->stop, 1);
        Py_BEGIN_ALLOW_THREADS
        pthread_join(sender->thread, NULL);
        Py_END_ALLOW_THREADS
    }
    Py_RETURN_NONE;
}

static void sender_dealloc(ChunkSender *sender) {
    Py_XDECREF(sender_close(sender, NULL));
    if (sender->epoll >= 0) close(sender->epoll);
    if (sender->timer >= 0) close(sender->timer);
    if (sender->news >= 0) close(sender->news);
    if (sender->stop >= 0) close(sender->stop);
    pthread_cond_destroy(&sender->sent);
    pthread_mutex_destroy(&sender->lock);
    free(sender->due.streams);
    free(sender->blocked.streams);
    free(sender->finished.streams);
    free(sender->line);
    PyTypeObject *type = Py_TYPE(sender);
    type->tp_free(sender);
    Py_DECREF(type);
}

static PyObject *sender_fileno(ChunkSender *sender, PyObject *Py_UNUSED(ignored)) { return PyLong_FromLong(sender->news); }

/* Make room in all lists for one more stream. Returns false if memory runs out. Called with the lock. */
static bool make_room(ChunkSender *sender) {
    if (sender->n_streams < sender->room) return true;
    size_t room = sender->room ? 2 * sender->room : 64;
    List *lists[] = {&sender->due, &sender->blocked, &sender->finished};
    for (int i = 0; i < 3; i++) {
        Stream **streams = realloc(lists[i]->streams, room * sizeof *streams);
        if (streams == NULL) return false;
        lists[i]->streams = streams;
    }
    sender->room = room;
    return true;
}

static bool check_chunks(PyObject *texts, PyObject *offsets) {
    Py_ssize_t n = PyTuple_GET_SIZE(texts);
    if (n == 0 || PyBytes_GET_SIZE(offsets) != n * (Py_ssize_t)sizeof(int64_t)) {
        PyErr_SetString(PyExc_ValueError, "expected at least one text, and an offset of eight bytes for each");
        return false;
    }
    for (Py_ssize_t i = 0; i < n; i++)
        if (!PyBytes_Check(PyTuple_GET_ITEM(texts, i))) {
            PyErr_SetString(PyExc_TypeError, "each text must be bytes");
            return false;
        }
    return true;
}

static PyObject *sender_send(ChunkSender *sender, PyObject *args) {
    int fd;
    long long start;
    PyObject *owner, *head, *opening, *before, *texts, *after, *offsets;
    if (!PyArg_ParseTuple(args, "iOSSOO!SSL", &fd, &owner, &head, &opening, &before, &PyTuple_Type, &texts, &after,
                          &offsets, &start) ||
        !check_chunks(texts, offsets))
        return NULL;
    if (before != Py_None && !PyBytes_Check(before)) {
        PyErr_SetString(PyExc_TypeError, "`before` must be bytes, or None if the texts are ready to send");
        return NULL;
    }
    if (!sender->running) {
        PyErr_SetString(PyExc_RuntimeError, "the sender is closed");
        return NULL;
    }
    Stream *stream = (Stream *)stream_type->tp_alloc(stream_type, 0);
    if (stream == NULL) return NULL;
    stream->fd = -1;
    stream->sender = (ChunkSender *)Py_NewRef((PyObject *)sender);
    stream->owner = Py_NewRef(owner);
    stream->head = Py_NewRef(head);
    stream->opening = Py_NewRef(opening);
    stream->before = Py_NewRef(before);
    stream->texts = Py_NewRef(texts);
    stream->after = Py_NewRef(after);
    stream->offsets = Py_NewRef(offsets);
    stream->start = start;
    stream->n = (size_t)PyTuple_GET_SIZE(texts);
    stream->due = due_of(stream, 0);
    stream->stamps = calloc(stream->n, sizeof *stream->stamps);
    if (stream->stamps == NULL) {
        Py_DECREF(stream);
        return PyErr_NoMemory();
    }
    int own = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (own < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        Py_DECREF(stream);
        return NULL;
    }
    if (!lock(sender)) {
        close(own);
        Py_DECREF(stream);
        return NULL;
    }
    bool fits = make_room(sender);
    if (fits) {
        sender->n_streams++;
        stream->fd = own;
        stream->serial = sender->serials++;
        put_in(sender, stream, DUE);
        if (stream->due < sender->armed) arm(sender, stream->due > 0 ? stream->due : 1); /* 0 would disarm the timer */
    }
    pthread_mutex_unlock(&sender->lock);
    if (!fits) {
        close(own);
        Py_DECREF(stream);
        return PyErr_NoMemory();
    }
    return (PyObject *)stream;
}

static PyObject *sender_finished(ChunkSender *sender, PyObject *Py_UNUSED(ignored)) {
    eventfd_t count;
    eventfd_read(sender->news, &count);
    if (!lock(sender)) return NULL;
    size_t n = sender->finished.used;
    PyObject **owners = malloc(n * sizeof *owners + 1);
    for (size_t i = 0; owners != NULL && i < n; i++) {
        owners[i] = Py_NewRef(sender->finished.streams[i]->owner);
        sender->finished.streams[i]->place = NOWHERE;
    }
    if (owners != NULL) sender->finished.used = 0;
    pthread_mutex_unlock(&sender->lock);
    if (owners == NULL) return PyErr_NoMemory();
    PyObject *list = PyList_New((Py_ssize_t)n);
    for (size_t i = 0; i < n; i++) {
        if (list != NULL) PyList_SET_ITEM(list, (Py_ssize_t)i, owners[i]);
        else Py_DECREF(owners[i]);
    }
    free(owners);
    return list;
}

static PyMethodDef sender_methods[] = {
    {"fileno", (PyCFunction)sender_fileno, METH_NOARGS, "A descriptor that is readable when streams have ended."},
    {"send", (PyCFunction)sender_send, METH_VARARGS, "Send texts on a socket, by its descriptor; see _chunk_sender.pyi."},
    {"finished", (PyCFunction)sender_finished, METH_NOARGS, "The owners of streams that have ended since the last call."},
    {"close", (PyCFunction)sender_close, METH_NOARGS, "Stop the thread."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot sender_slots[] = {
    {Py_tp_new, sender_new},
    {Py_tp_dealloc, sender_dealloc},
    {Py_tp_methods, sender_methods},
    {Py_tp_doc, "A thread that sends chunks on schedule."},
    {0, NULL},
};

static PyType_Spec sender_spec = {
    .name = "asr_server._chunk_sender.ChunkSender",
    .basicsize = sizeof(ChunkSender),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = sender_slots,
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_chunk_sender", "See chunk_sender.py.", -1, NULL, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__chunk_sender(void) {
    PyObject *made = PyModule_Create(&module);
    if (made == NULL) return NULL;
    watch_forks();
    stream_type = (PyTypeObject *)PyType_FromSpec(&stream_spec);
    PyObject *sender_type = PyType_FromSpec(&sender_spec);
    if (stream_type == NULL || sender_type == NULL || PyModule_AddObject(made, "ChunkSender", sender_type) < 0) {
        Py_XDECREF(stream_type);
        Py_XDECREF(sender_type);
        Py_DECREF(made);
        return NULL;
    }
    return made;
}
