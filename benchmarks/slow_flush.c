/* A disk whose flushes take a millisecond longer: loaded with LD_PRELOAD into a process that bench_store.py measures.
 *
 * A flush is fsync, fdatasync, msync with MS_SYNC, and a write to a file that was opened with O_SYNC or O_DSYNC (so
 * LMDB writes its meta page). The time is slept after the real flush, without any lock: two flushes at once each take
 * their millisecond, as on a disk with a queue.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define FILES_MAX 65536
#define ADDED_NS 1000000L

static unsigned char synchronous[FILES_MAX];

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

static void flushed(void) {
    struct timespec left = {0, ADDED_NS};
    clock_nanosleep(CLOCK_MONOTONIC, 0, &left, 0);
}

static void written(int file) {
    if (file >= 0 && file < FILES_MAX && synchronous[file]) flushed();
}

static int opened(int file, int flags) {
    /* O_SYNC has the bit of O_DSYNC. */
    if (file >= 0 && file < FILES_MAX) synchronous[file] = (flags & O_DSYNC) != 0;
    return file;
}

int fsync(int file) { REAL(fsync); int result = real(file); flushed(); return result; }

int fdatasync(int file) { REAL(fdatasync); int result = real(file); flushed(); return result; }

int msync(void *start, size_t length, int flags) {
    REAL(msync);
    int result = real(start, length, flags);
    if (flags & MS_SYNC) flushed();
    return result;
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(name); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        return opened(real(path, flags, mode), flags); \
    }

#define OPENAT(name) \
    int name(int folder, const char *path, int flags, ...) { \
        REAL(name); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        return opened(real(folder, path, flags, mode), flags); \
    }

OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

#define WRITE(name, arguments, ...) \
    ssize_t name arguments { REAL(name); ssize_t result = real(__VA_ARGS__); written(file); return result; }

WRITE(write, (int file, const void *bytes, size_t length), file, bytes, length)
WRITE(pwrite, (int file, const void *bytes, size_t length, off_t at), file, bytes, length, at)
WRITE(pwrite64, (int file, const void *bytes, size_t length, off64_t at), file, bytes, length, at)
WRITE(writev, (int file, const struct iovec *parts, int count), file, parts, count)
WRITE(pwritev, (int file, const struct iovec *parts, int count, off_t at), file, parts, count, at)
WRITE(pwritev64, (int file, const struct iovec *parts, int count, off64_t at), file, parts, count, at)
