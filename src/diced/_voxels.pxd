# Constant windows for kernels that work without the GIL; `_voxels.pyx` says what it owns.

from libc.stdint cimport uint8_t


cdef bint is_constant(
    const char* data, int axes, const Py_ssize_t* shape, const Py_ssize_t* strides,
    Py_ssize_t item, int unit
) noexcept nogil
cdef void fill_window(
    char* data, int axes, const Py_ssize_t* shape, const Py_ssize_t* strides, Py_ssize_t item,
    const uint8_t* element, Py_ssize_t length
) noexcept nogil
