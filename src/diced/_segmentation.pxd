# What both directions of compressed_segmentation need; `_segmentation.pyx` describes the layout.


cdef class Volume:
    cdef Py_buffer buffer
    cdef bint held
    cdef int width      # words of a label
    cdef char* base
    cdef Py_ssize_t[3] shape
    cdef Py_ssize_t[3] strides
