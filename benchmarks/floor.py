"""The fastest copy that we know: two threads, space reserved, 1 MiB at a time. `python -m benchmarks.floor IN OUT [--fsync]`

Nothing of the compiler is imported: what the executor takes beyond this is what its generality costs.
"""

import itertools
import os
import sys
import threading

WINDOW = 1 << 20


def main() -> None:
    source = os.open(sys.argv[1], os.O_RDONLY)
    target = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    size = os.fstat(source).st_size
    os.posix_fallocate(target, 0, size)
    turns = itertools.count(0, 32 * WINDOW)

    def work() -> None:
        buffer = memoryview(bytearray(WINDOW))
        while (start := next(turns)) < size:
            for offset in range(start, min(size, start + 32 * WINDOW), WINDOW):
                got = os.preadv(source, [buffer], offset)
                os.pwrite(target, buffer[:got], offset)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if "--fsync" in sys.argv:
        os.fsync(target)


if __name__ == "__main__":
    main()
