/* Finds the events in a body of server-sent events: the compiled part of events.py, which explains why. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>
#include <string.h>

static const char DATA[] = "data: ", DONE[] = "[DONE]";
enum { DATA_LENGTH = sizeof DATA - 1, DONE_LENGTH = sizeof DONE - 1 };

/* The position after the last two consecutive line ends from `start` on; `start` without any. */
static Py_ssize_t last_gap(const char *body, Py_ssize_t start, Py_ssize_t length) {
    for (Py_ssize_t end = length; end >= start + 2; end--)
        if (body[end - 1] == '\n' && body[end - 2] == '\n') return end;
    return start;
}

typedef struct {
    char *objects; /* JSON objects, each followed by a line end */
    Py_ssize_t used;
    PyObject *stamps;
    bool done;
} Found;

/* Put the events from `at` to `end` into `found`. Returns false if they are not all plain or, with an exception, on an
 * error. */
static bool find_plain(const char *body, Py_ssize_t at, Py_ssize_t end, PyObject *stamps, PyObject *ends, Found *found) {
    Py_ssize_t read = 0, reads = PySequence_Fast_GET_SIZE(ends);
    bool in_event = false;
    if (memchr(body + at, '\r', (size_t)(end - at)) != NULL) return false;
    while (at < end) {
        const char *line = body + at, *line_end = memchr(line, '\n', (size_t)(end - at));
        Py_ssize_t length = line_end - line; /* a line end exists, because it is the last byte */
        at += length + 1;
        if (length == 0) {
            if (!in_event) continue;
            in_event = false;
            if (found->done) continue; /* not a chunk, so it needs no stamp */
            while (read < reads && PyLong_AsSsize_t(PySequence_Fast_GET_ITEM(ends, read)) < at) read++;
            if (PyErr_Occurred()) return false;
            if (read == reads || read >= PySequence_Fast_GET_SIZE(stamps)) {
                PyErr_SetString(PyExc_IndexError, "no read covers the end of an event");
                return false;
            }
            if (PyList_Append(found->stamps, PySequence_Fast_GET_ITEM(stamps, read)) < 0) return false;
        } else if (line[0] == ':') {
            continue;
        } else {
            if (in_event || found->done || length < DATA_LENGTH || memcmp(line, DATA, DATA_LENGTH) != 0) return false;
            in_event = true;
            line += DATA_LENGTH;
            length -= DATA_LENGTH;
            if (length == DONE_LENGTH && memcmp(line, DONE, DONE_LENGTH) == 0) {
                found->done = true;
            } else if (length >= 2 && line[0] == '{' && line[length - 1] == '}') {
                memcpy(found->objects + found->used, line, (size_t)length);
                found->used += length;
                found->objects[found->used++] = '\n';
            } else {
                return false;
            }
        }
    }
    return !in_event;
}

static PyObject *find(PyObject *Py_UNUSED(module), PyObject *args) {
    PyObject *body, *given_stamps, *given_ends, *result = NULL;
    Py_ssize_t start, limit = PY_SSIZE_T_MAX;
    if (!PyArg_ParseTuple(args, "SnOO|n", &body, &start, &given_stamps, &given_ends, &limit)) return NULL;
    const char *bytes = PyBytes_AS_STRING(body);
    if (limit == PY_SSIZE_T_MAX) limit = PyBytes_GET_SIZE(body);
    if (start < 0 || start > limit || limit > PyBytes_GET_SIZE(body))
        return PyErr_Format(PyExc_ValueError, "positions outside of the body: %zd, %zd", start, limit);
    Py_ssize_t end = last_gap(bytes, start, limit);
    PyObject *stamps = PySequence_Fast(given_stamps, "stamps"), *ends = PySequence_Fast(given_ends, "ends");
    PyObject *objects = PyBytes_FromStringAndSize(NULL, end - start);
    Found found = {.stamps = PyList_New(0)};
    if (stamps != NULL && ends != NULL && objects != NULL && found.stamps != NULL) {
        found.objects = PyBytes_AS_STRING(objects);
        if (!find_plain(bytes, start, end, stamps, ends, &found))
            result = PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
        else if (_PyBytes_Resize(&objects, found.used) == 0)
            result = Py_BuildValue("(OOOn)", objects, found.stamps, found.done ? Py_True : Py_False, end);
    }
    Py_XDECREF(stamps);
    Py_XDECREF(ends);
    Py_XDECREF(objects);
    Py_XDECREF(found.stamps);
    return result;
}

static PyMethodDef methods[] = {
    {"find", find, METH_VARARGS, "See events.py."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_events", "See events.py.", 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__events(void) { return PyModule_Create(&module); }
