// v1fast._C, or V1FAST_MODULE: importing it runs the STABLE_TORCH_LIBRARY_IMPL registrations linked into it.
#include <Python.h>

#include "cpu/detail/large_memory.h"

#define V1FAST_JOINED(a, b) a##b
#define V1FAST_INIT(module) V1FAST_JOINED(PyInit_, module)
#define V1FAST_QUOTED(text) #text
#define V1FAST_TEXT(macro) V1FAST_QUOTED(macro)

static PyObject* release_memory(PyObject*, PyObject*) {
    v1fast::release_large_memory();
    Py_RETURN_NONE;
}

extern "C" __attribute__((visibility("default"))) PyObject* V1FAST_INIT(V1FAST_MODULE)(void) {
    static PyMethodDef methods[] = {{"release_memory", release_memory, METH_NOARGS, nullptr},
                                    {nullptr, nullptr, 0, nullptr}};
    static PyModuleDef definition = {
        PyModuleDef_HEAD_INIT, V1FAST_TEXT(V1FAST_MODULE), nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};
    return PyModule_Create(&definition);
}
