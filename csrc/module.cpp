// v1fast._C: importing it runs the STABLE_TORCH_LIBRARY_IMPL registrations linked into it.
#include <Python.h>

#include "cpu/detail/large_memory.h"

static PyObject* release_memory(PyObject*, PyObject*) {
    v1fast::release_large_memory();
    Py_RETURN_NONE;
}

extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C(void) {
    static PyMethodDef methods[] = {{"release_memory", release_memory, METH_NOARGS, nullptr},
                                    {nullptr, nullptr, 0, nullptr}};
    static PyModuleDef definition = {
        PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};
    return PyModule_Create(&definition);
}
