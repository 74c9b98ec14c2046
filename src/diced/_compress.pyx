"""General compression of bytes: LZ4 and Zstandard.

Owns which LZ4 and Zstandard are called. The wheels of the ``lz4`` and ``zstandard`` packages export
the C functions, so their addresses are taken without importing the packages, without headers, and
called without the GIL; then the system's libraries are tried, then the packages' own Python
functions. Knows nothing of blocks.
"""

from cpython.buffer cimport (
    PyBUF_SIMPLE,
    PyBUF_WRITABLE,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.ref cimport Py_XDECREF, PyObject
from libc.limits cimport INT_MAX
from libc.stdint cimport uintptr_t

from diced import library
from diced.errors import CorruptError, InvalidError, UnsupportedError

cdef extern from "Python.h":
    # As pointers: a resize may move the object, and needs the only reference to it.
    PyObject* PyBytes_FromStringAndSize(const char* data, Py_ssize_t size) except NULL
    char* PyBytes_AS_STRING(PyObject* data)
    int _PyBytes_Resize(PyObject** data, Py_ssize_t size) except -1
    object PyMemoryView_FromMemory(char* data, Py_ssize_t size, int flags)
    int PyBUF_READ, PyBUF_WRITE

cdef enum:
    # Giving the GIL up and taking it again costs more than working on less than this.
    FREE_ABOVE = 4096
    LZ4_MAX_INPUT = 0x7E000000
    # Contexts kept for later calls: a decoder has 160 KB, an encoder of level 1 some 1.3 MB.
    SPARE_CONTEXTS = 8

SOURCES = library.SOURCES


cdef class _Bytes:
    """A held contiguous buffer."""

    def __cinit__(self, obj, str what, bint writable):
        try:
            PyObject_GetBuffer(
                obj, &self.buffer, PyBUF_SIMPLE | (PyBUF_WRITABLE if writable else 0)
            )
        except (BufferError, TypeError, ValueError) as error:
            raise InvalidError(
                f"{what} must be a contiguous{' writable' if writable else ''} buffer;"
                f" got {type(obj).__name__} ({error})"
            ) from None
        self.held = True
        self.start = <unsigned char*>self.buffer.buf
        self.size = self.buffer.len

    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.buffer)

    cdef object view(self):
        """Return the bytes as a memoryview, for the Python packages; valid while this is."""
        return PyMemoryView_FromMemory(
            <char*>self.start, self.size, PyBUF_READ if self.buffer.readonly else PyBUF_WRITE
        )


cdef bytes _shortened(PyObject** out, Py_ssize_t size):
    """Cut a fresh bytes object to `size`, hand it over and forget the pointer."""
    _PyBytes_Resize(out, size)
    result = <bytes>out[0]
    Py_XDECREF(out[0])
    out[0] = NULL
    return result


cdef class _Lz4:
    """One way to LZ4: C functions, or the Python package if the pointers are NULL."""

    def __init__(self, str source):
        if source == "python":
            try:
                import lz4.block as package
                from lz4 import library_version_string
            except ImportError as error:
                raise UnsupportedError(f"package lz4 cannot be imported: {error}") from None
            self.package = package
            version = library_version_string()
            self.facts = {"source": source, "version": version, "path": package.__file__}
            return
        lib = library.load(
            source, "lz4", "block", "_block",
            ("liblz4.so.1", "liblz4.1.dylib", "/opt/homebrew/lib/liblz4.1.dylib", "liblz4.dll"),
        )
        version = library.version(lib, "LZ4_versionNumber", 10800, 20000)
        self.c_compress = <lz4_compress_t><uintptr_t>library.address(lib, "LZ4_compress_fast")
        self.c_decompress = <lz4_decompress_t><uintptr_t>library.address(lib, "LZ4_decompress_safe")
        self.facts = {"source": source, "version": version, "path": lib._name}

    cdef bytes compress(self, _Bytes src, int acceleration):
        cdef PyObject* out
        cdef char* target
        cdef int size
        if src.size > LZ4_MAX_INPUT:
            raise InvalidError(f"LZ4 takes at most {LZ4_MAX_INPUT} bytes; got {src.size}")
        if self.c_compress is NULL:
            return self.package.compress(
                src.view(), mode="fast", acceleration=acceleration, store_size=False
            )
        # The library's own bound; the compressor stops at the capacity in any case.
        cdef int bound = <int>(src.size + src.size // 255 + 16)
        out = PyBytes_FromStringAndSize(NULL, bound)
        target = PyBytes_AS_STRING(out)
        if src.size <= FREE_ABOVE:
            size = self.c_compress(<char*>src.start, target, <int>src.size, bound, acceleration)
        else:
            with nogil:
                size = self.c_compress(
                    <char*>src.start, target, <int>src.size, bound, acceleration
                )
        if size <= 0:
            Py_XDECREF(out)
            raise InvalidError(f"LZ4 could not compress {src.size} bytes")
        return _shortened(&out, size)

    cdef int decompress(self, _Bytes src, _Bytes dst) except -1:
        cdef int size
        if src.size > INT_MAX or dst.size > INT_MAX:
            raise CorruptError(f"LZ4 data is at most 2 GiB; got {src.size} bytes for {dst.size}")
        if self.c_decompress is NULL:
            self.by_package(src, dst)
            return 0
        if src.size <= FREE_ABOVE and dst.size <= FREE_ABOVE:
            size = self.c_decompress(
                <char*>src.start, <char*>dst.start, <int>src.size, <int>dst.size
            )
        else:
            with nogil:
                size = self.c_decompress(
                    <char*>src.start, <char*>dst.start, <int>src.size, <int>dst.size
                )
        if size != dst.size:
            _lz4_damaged(src.size, dst.size, size)
        return 0

    cdef int by_package(self, _Bytes src, _Bytes dst) except -1:
        if dst.size == 0:
            # The package takes a size of 0 for "unknown"; nothing is always one zero byte.
            if src.size != 1 or src.start[0] != 0:
                _lz4_damaged(src.size, 0, -1)
            return 0
        try:
            data = self.package.decompress(src.view(), uncompressed_size=dst.size)
        except self.package.LZ4BlockError:
            _lz4_damaged(src.size, dst.size, -1)
        if len(data) != dst.size:
            _lz4_damaged(src.size, dst.size, len(data))
        dst.view()[:] = data
        return 0


cdef int _lz4_damaged(Py_ssize_t stored, Py_ssize_t wanted, Py_ssize_t got) except -1:
    raise CorruptError(
        f"LZ4 data of {stored} bytes is damaged: "
        + (f"{got} bytes came out" if got >= 0 else "it cannot be decoded")
        + f", {wanted} expected"
    )


cdef class _Context:
    """A compression or decompression context, freed by the library that made it."""

    def __dealloc__(self):
        if self.handle is not NULL:
            self.release(self.handle)


cdef class _Zstd:
    """One way to Zstandard: C functions, or the Python package if the pointers are NULL."""

    def __init__(self, str source):
        if source == "python":
            try:
                import zstandard as package
                from zstandard import ZSTD_VERSION
            except ImportError as error:
                raise UnsupportedError(f"package zstandard cannot be imported: {error}") from None
            self.package = package
            version = ".".join(str(each) for each in ZSTD_VERSION)
            self.facts = {"source": source, "version": version, "path": package.__file__}
            return
        lib = library.load(
            source, "zstandard", "", "_cffi",
            ("libzstd.so.1", "libzstd.1.dylib", "/opt/homebrew/lib/libzstd.1.dylib", "libzstd.dll"),
        )
        version = library.version(lib, "ZSTD_versionNumber", 10400, 20000)
        self.create_encoder = <zstd_create_t><uintptr_t>library.address(lib, "ZSTD_createCCtx")
        self.create_decoder = <zstd_create_t><uintptr_t>library.address(lib, "ZSTD_createDCtx")
        self.free_encoder = <zstd_free_t><uintptr_t>library.address(lib, "ZSTD_freeCCtx")
        self.free_decoder = <zstd_free_t><uintptr_t>library.address(lib, "ZSTD_freeDCtx")
        self.c_compress = <zstd_compress_t><uintptr_t>library.address(lib, "ZSTD_compressCCtx")
        self.c_decompress = (
            <zstd_decompress_t><uintptr_t>library.address(lib, "ZSTD_decompressDCtx")
        )
        self.is_error = <zstd_is_error_t><uintptr_t>library.address(lib, "ZSTD_isError")
        self.error_name = <zstd_error_name_t><uintptr_t>library.address(lib, "ZSTD_getErrorName")
        self.content = <zstd_content_t><uintptr_t>library.address(lib, "ZSTD_getFrameContentSize")
        self.bound = <zstd_bound_t><uintptr_t>library.address(lib, "ZSTD_compressBound")
        self.encoders = []
        self.decoders = []
        self.facts = {"source": source, "version": version, "path": lib._name}

    cdef _Context context(self, list spare, zstd_create_t create, zstd_free_t release):
        cdef _Context found
        try:
            return <_Context>spare.pop()
        except IndexError:
            found = _Context()
        found.release = release
        found.handle = create()
        if found.handle is NULL:
            raise MemoryError("a Zstandard context")
        return found

    cdef bytes compress(self, _Bytes src, int level):
        cdef _Context context
        cdef PyObject* out
        cdef char* target
        cdef size_t room, size
        if self.c_compress is NULL:
            return self.package.ZstdCompressor(level=level).compress(src.view())
        room = self.bound(src.size)
        if self.is_error(room):
            raise InvalidError(f"Zstandard cannot compress {src.size} bytes at once")
        context = self.context(self.encoders, self.create_encoder, self.free_encoder)
        out = PyBytes_FromStringAndSize(NULL, room)
        target = PyBytes_AS_STRING(out)
        with nogil:
            size = self.c_compress(context.handle, target, room, src.start, src.size, level)
        if len(self.encoders) < SPARE_CONTEXTS:
            self.encoders.append(context)
        if self.is_error(size):
            Py_XDECREF(out)
            raise InvalidError(
                f"Zstandard could not compress {src.size} bytes: {self.error_name(size).decode()}"
            )
        return _shortened(&out, size)

    cdef int decompress(self, _Bytes src, _Bytes dst) except -1:
        cdef _Context context
        cdef unsigned long long announced
        cdef size_t size
        if self.c_decompress is NULL:
            self.by_package(src, dst)
            return 0
        announced = self.content(src.start, src.size)
        if announced == <unsigned long long>-2:
            _zstd_damaged(src.size, dst.size, "no frame header")
        if announced != <unsigned long long>-1 and announced != <unsigned long long>dst.size:
            _zstd_damaged(src.size, dst.size, f"the frame announces {announced} bytes")
        context = self.context(self.decoders, self.create_decoder, self.free_decoder)
        with nogil:
            size = self.c_decompress(context.handle, dst.start, dst.size, src.start, src.size)
        if len(self.decoders) < SPARE_CONTEXTS:
            self.decoders.append(context)
        if self.is_error(size):
            _zstd_damaged(src.size, dst.size, self.error_name(size).decode())
        if size != <size_t>dst.size:
            _zstd_damaged(src.size, dst.size, f"{size} bytes came out")
        return 0

    cdef int by_package(self, _Bytes src, _Bytes dst) except -1:
        package = self.package
        try:
            announced = package.frame_content_size(src.view())
            if announced not in (-1, dst.size):
                _zstd_damaged(src.size, dst.size, f"the frame announces {announced} bytes")
            if announced == 0:
                # decompress() would not look at the rest of such a frame.
                ender = package.ZstdDecompressor().decompressobj()
                ender.decompress(src.view())
                if not ender.eof or ender.unused_data:
                    _zstd_damaged(src.size, dst.size, "the frame ends early or late")
                return 0
            # Not stream_reader().readinto(), which needs no copy but takes a frame without its
            # end for a whole one.
            data = package.ZstdDecompressor().decompress(
                src.view(), max_output_size=dst.size, allow_extra_data=False
            )
        except package.ZstdError as error:
            _zstd_damaged(src.size, dst.size, str(error))
        if len(data) != dst.size:
            _zstd_damaged(src.size, dst.size, f"{len(data)} bytes came out")
        dst.view()[:] = data
        return 0


cdef int _zstd_damaged(Py_ssize_t stored, Py_ssize_t wanted, str why) except -1:
    raise CorruptError(
        f"Zstandard data of {stored} bytes is damaged: {why}, {wanted} expected"
    )


# ---------------------------------------------------------------------------------- binding

cdef _Lz4 _lz4 = None
cdef _Zstd _zstd = None


cdef _Lz4 lz4_in_use():
    return _lz4 if _lz4 is not None else _use_lz4()


cdef _Zstd zstd_in_use():
    return _zstd if _zstd is not None else _use_zstd()


def _make_lz4(str source):
    cdef _Lz4 made = _Lz4(source)
    library.prove(
        lambda data: made.compress(_Bytes(data, "src", False), 1),
        lambda data, room: made.decompress(_Bytes(data, "src", False), _Bytes(room, "dst", True)),
    )
    return made


def _make_zstd(str source):
    cdef _Zstd made = _Zstd(source)
    library.prove(
        lambda data: made.compress(_Bytes(data, "src", False), 1),
        lambda data, room: made.decompress(_Bytes(data, "src", False), _Bytes(room, "dst", True)),
    )
    return made


cdef _Lz4 _use_lz4(str source="auto"):
    global _lz4
    cdef _Lz4 found
    found, skipped = library.choose("lz4", source, _make_lz4)
    found.facts["skipped"] = skipped
    _lz4 = found
    return found


cdef _Zstd _use_zstd(str source="auto"):
    global _zstd
    cdef _Zstd found
    found, skipped = library.choose("zstd", source, _make_zstd)
    found.facts["skipped"] = skipped
    _zstd = found
    return found


def bind(str lz4="auto", str zstd="auto"):
    """Choose where LZ4 and Zstandard come from, for this process.

    Happens by itself, with "auto", at the first use. Calls in progress finish with what they
    began with.

    Parameters
    ----------
    lz4, zstd : {"auto", "wheel", "system", "python"}
        The C library inside the wheel of the Python package, the system's C library, the
        package's Python functions, or the first of these that works.

    Returns
    -------
    dict
        As `backend`.

    Raises
    ------
    UnsupportedError
        The library is not there, has an unknown version, or fails a round trip.
    """
    _use_lz4(lz4)
    _use_zstd(zstd)
    return backend()


def backend():
    """Tell where LZ4 and Zstandard come from.

    Returns
    -------
    dict
        "lz4" and "zstd", each a dict of "source" ("wheel", "system" or "python"), "version",
        "path", and "skipped": what was tried before, and why it was not used.
    """
    cdef _Lz4 lz4 = lz4_in_use()
    cdef _Zstd zstd = zstd_in_use()
    return {"lz4": dict(lz4.facts), "zstd": dict(zstd.facts)}


def lz4_compress(src, int acceleration=1):
    """Return the LZ4 block of a contiguous buffer; its length is not stored.

    Parameters
    ----------
    src : contiguous buffer
        At most 2,113,929,216 bytes.
    acceleration : int
        1 to 65537: larger is faster and compresses less.
    """
    if not 1 <= acceleration <= 65537:
        raise InvalidError(f"acceleration is 1 to 65537; got {acceleration}")
    cdef _Lz4 lz4 = lz4_in_use()
    return lz4.compress(_Bytes(src, "src", False), acceleration)


def lz4_decompress(src, dst):
    """Decode an LZ4 block into `dst`, which it must fill exactly.

    Parameters
    ----------
    src : contiguous buffer
    dst : contiguous writable buffer
        Undefined after an error; never written past its end.

    Raises
    ------
    CorruptError
        `src` is damaged, or decodes to another length.
    """
    cdef _Lz4 lz4 = lz4_in_use()
    lz4.decompress(_Bytes(src, "src", False), _Bytes(dst, "dst", True))


def zstd_compress(src, int level=1):
    """Return a Zstandard frame of a contiguous buffer, with its length in the header.

    Parameters
    ----------
    src : contiguous buffer
    level : int
        1 to 22: larger is slower and compresses more.
    """
    if not 1 <= level <= 22:
        raise InvalidError(f"level is 1 to 22; got {level}")
    cdef _Zstd zstd = zstd_in_use()
    return zstd.compress(_Bytes(src, "src", False), level)


def zstd_decompress(src, dst):
    """Decode a Zstandard frame into `dst`, which it must fill exactly.

    Parameters
    ----------
    src : contiguous buffer
    dst : contiguous writable buffer
        Undefined after an error; never written past its end.

    Raises
    ------
    CorruptError
        `src` is damaged, or decodes to another length.
    """
    cdef _Zstd zstd = zstd_in_use()
    zstd.decompress(_Bytes(src, "src", False), _Bytes(dst, "dst", True))
