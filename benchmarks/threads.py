"""Is the GIL released? The same work by N threads at once, and N times in a loop."""

import threading

from benchmarks.common import Scratch, em, labels
from diced import _blocks, _codec, _crc32c
from diced.codec import get_codec

COUNT = 2
REPEAT = 20


def _together(work):
    threads = [threading.Thread(target=work, args=(i,)) for i in range(COUNT)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class Kernels:
    """Kernels called from several threads."""

    params = ["crc32c", "copy", "lz4 encode", "lz4 decode", "label encode", "label decode"]
    param_names = ["kernel"]

    def setup(self, kernel):
        gray = em()[:64, :256, :256].copy()
        seg = labels()[:64, :256, :256].copy()
        codec = get_codec("lz4", gray.dtype, gray.shape, None)
        packed = codec.encode(gray)
        coded = _codec.label_encode(seg)
        outs = [gray.copy() for _ in range(COUNT)]
        segs = [seg.copy() for _ in range(COUNT)]
        data = gray.tobytes()
        self.once = {
            "crc32c": lambda i: _crc32c.crc32c(data),
            "copy": lambda i: _blocks.copy(gray, outs[i]),
            "lz4 encode": lambda i: codec.encode(gray),
            "lz4 decode": lambda i: codec.decode(packed, outs[i], (0, 0, 0)),
            "label encode": lambda i: _codec.label_encode(seg),
            "label decode": lambda i: _codec.label_decode(
                coded, segs[i], (0, 0, 0), (64, 256, 256)
            ),
        }[kernel]

    def _work(self, i):
        for _ in range(REPEAT):
            self.once(i)

    def time_parallel(self, kernel):
        _together(self._work)

    def time_loop(self, kernel):
        for i in range(COUNT):
            self._work(i)


class Reads:
    """Several user threads read one array."""

    params = [1, 2, 4]
    param_names = ["threads"]

    def setup(self, threads):
        self.scratch = Scratch(threads=1)
        self.array = self.scratch.array(em())

    def teardown(self, threads):
        self.scratch.close()

    def time_boxes(self, threads):
        def work(i):
            for k in range(24 // threads):
                self.array[0:100, 10 * k : 10 * k + 100, 100 * i : 100 * i + 100]

        running = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
