/* Stands between a program and its disk (LD_PRELOAD): counts what changes files under one folder, and makes it go wrong.

   Each call that writes, syncs or changes names under FAULTS_ROOT is a *point*, numbered from 1. What is to happen:

       FAULTS_PLAN=            only count
       FAULTS_PLAN=kill 17     the process is killed with SIGKILL just before point 17
       FAULTS_PLAN=half 17     half of the bytes are written at point 17, then it is killed
       FAULTS_PLAN=tear 17 5   a random half of the 512-byte sectors is written (5 is the seed), then it is killed
       FAULTS_PLAN=fail 17 5 once      point 17 fails with errno 5, what comes after succeeds
       FAULTS_PLAN=fail 17 28 on       it and all after it; ENOSPC only where room is taken, and statvfs says so too
       FAULTS_PLAN=late 17 5           point 17 writes all, and fails; so does the next, which would undo it
       FAULTS_PLAN=short 17    half of the bytes are written and counted, then there is no room: what a full disk does

   FAULTS_JOURNAL is a file to which a record of each point is appended, with the bytes written if FAULTS_BYTES is set.
   The program may write records of its own between them (fault_journal.py). The environment is read when the library
   is loaded, and again by faults_arm(); faults_heal() ends the plan.

   A sync is only recorded and O_DSYNC is only remembered: no plan here depends on what the disk really has, and so many
   runs would wait for it for minutes. What a power loss leaves is computed from the journal (fault_disk.py).

   LMDB writes its file with pwrite and writev, its meta page through a second descriptor that was opened with O_DSYNC,
   and calls all of it through the dynamic linker. What is written through a mapping is not seen: LMDB does that to
   lock.mdb only, which it makes anew at the next opening. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind {
    NOTE, WRITE, PWRITE, WRITEV, PWRITEV, FSYNC, FDATASYNC, MSYNC, SYNC_FILE_RANGE, RENAME, UNLINK, MKDIR, RMDIR, CREATE,
    FTRUNCATE, FALLOCATE, SENDFILE, COPY_FILE_RANGE, LINK
};

enum { DSYNC = 1, HIT = 2 };

struct __attribute__((packed)) record {
    uint32_t magic;
    uint16_t kind, flags;
    uint64_t point, inode, offset, length;
    int32_t error;
    uint16_t path_bytes, path2_bytes;
    uint32_t data_bytes;
};

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static char root[PATH_MAX];
static size_t root_bytes;
static int journal = -1, with_bytes;
static char plan[16];
static uint64_t plan_point, points;
static long plan_number;
static int plan_on, no_room;
#define FDS 4096
static char dsync[FDS];

#define REAL(name) ((__typeof__(&name))real(#name))

static void *real(const char *name) {
    void *found = dlsym(RTLD_NEXT, name);
    if (!found) abort();
    return found;
}

static int is_plan(const char *name) { return !strcmp(plan, name); }

void faults_arm(void) {
    const char *folder = getenv("FAULTS_ROOT"), *file = getenv("FAULTS_JOURNAL"), *text = getenv("FAULTS_PLAN");
    char how[8] = "";
    if (journal >= 0) syscall(SYS_close, journal);
    journal = -1;
    points = plan_point = 0;
    plan_number = no_room = 0;
    plan[0] = root[0] = 0;
    if (text) sscanf(text, "%15s %lu %ld %7s", plan, &plan_point, &plan_number, how);
    plan_on = !strcmp(how, "on");
    with_bytes = getenv("FAULTS_BYTES") != NULL;
    if (folder && strlen(folder) < sizeof root) strcpy(root, folder);
    root_bytes = strlen(root);
    if (file && *file) {
        int fd = (int)syscall(SYS_openat, AT_FDCWD, file, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
        /* far up, out of the way of a program that closes what it did not open */
        journal = fcntl(fd, F_DUPFD_CLOEXEC, 900);
        syscall(SYS_close, fd);
    }
}

void faults_heal(void) { plan[0] = 0; no_room = 0; }

static void __attribute__((constructor)) loaded(void) { faults_arm(); }

/* Paths -------------------------------------------------------------------------------------------------------------- */

static int below_root(const char *path) {
    return root_bytes && !strncmp(path, root, root_bytes) && (!path[root_bytes] || path[root_bytes] == '/');
}

static int path_of_fd(int fd, char *path) {
    char link[64];
    if (!root_bytes || fd < 0) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t bytes = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
    if (bytes <= 0) return 0;
    path[bytes] = 0;
    return below_root(path);
}

static int path_of_name(int folder, const char *name, char *path) {
    if (!root_bytes || !name) return 0;
    path[0] = 0;
    if (name[0] != '/') {
        char link[64];
        snprintf(link, sizeof link, folder == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", folder);
        ssize_t bytes = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 2);
        if (bytes <= 0) return 0;
        path[bytes] = '/';
        path[bytes + 1] = 0;
    }
    if (strlen(path) + strlen(name) >= PATH_MAX) return 0;
    strcat(path, name);
    return below_root(path);
}

/* Points ------------------------------------------------------------------------------------------------------------- */

struct point {
    enum kind kind;
    int fd;
    char path[PATH_MAX], path2[PATH_MAX];
    off_t offset;
    const struct iovec *parts;
    int parts_count;
    size_t length;
};

static void record(const struct point *at, int error, int flags) {
    struct record head = {0xFA17FA17u, (uint16_t)at->kind, (uint16_t)flags, points, 0, (uint64_t)at->offset, at->length,
                          error, (uint16_t)strlen(at->path), (uint16_t)strlen(at->path2), 0};
    struct stat found;
    if (journal < 0) return;
    if (at->fd >= 0 && !fstat(at->fd, &found)) head.inode = found.st_ino;
    if (at->fd < 0 && at->kind == MKDIR && !stat(at->path, &found)) head.inode = found.st_ino;
    if (at->fd >= 0 && at->fd < FDS && dsync[at->fd]) head.flags |= DSYNC;
    int data = with_bytes && at->parts && !error;
    if (data) head.data_bytes = (uint32_t)at->length;
    size_t bytes = sizeof head + head.path_bytes + head.path2_bytes + head.data_bytes;
    char *text = malloc(bytes), *end = text + sizeof head;
    memcpy(text, &head, sizeof head);
    end = (char *)memcpy(end, at->path, head.path_bytes) + head.path_bytes;
    end = (char *)memcpy(end, at->path2, head.path2_bytes) + head.path2_bytes;
    size_t left = head.data_bytes;
    for (int i = 0; data && left && i < at->parts_count; i++) {
        size_t part = at->parts[i].iov_len < left ? at->parts[i].iov_len : left;
        end = (char *)memcpy(end, at->parts[i].iov_base, part) + part;
        left -= part;
    }
    syscall(SYS_write, journal, text, bytes);
    free(text);
}

static void die(void) {
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;) pause();
}

static char *flat(const struct point *at) {
    char *all = aligned_alloc(4096, (at->length + 4096) & ~(size_t)4095), *end = all;
    for (int i = 0; i < at->parts_count; i++)
        end = (char *)memcpy(end, at->parts[i].iov_base, at->parts[i].iov_len) + at->parts[i].iov_len;
    return all;
}

static void put(int fd, const char *bytes, size_t length, off_t offset) {
    if (length) syscall(SYS_pwrite64, fd, bytes, length, offset);
}

static int takes_room(enum kind kind) {
    return (kind >= WRITE && kind <= PWRITEV) || kind == CREATE || kind == MKDIR || kind == FALLOCATE || kind == SENDFILE
           || kind == COPY_FILE_RANGE;
}

/* What is to happen here: 0 go on, > 0 fail with this errno, < 0 write so many bytes less one and say so. */
static ssize_t meet(const struct point *at) {
    points++;
    int here = points == plan_point && plan[0];
    if (here && (is_plan("kill") || is_plan("half") || is_plan("tear"))) {
        record(at, 0, HIT);
        if (at->parts && !is_plan("kill")) {
            char *all = flat(at);
            if (is_plan("half")) put(at->fd, all, at->length / 2, at->offset);
            unsigned seed = (unsigned)plan_number;
            /* sectors of the file, not of the write */
            for (size_t from = 0, to; is_plan("tear") && from < at->length; from = to) {
                to = from + 512 - (size_t)(at->offset + (off_t)from) % 512;
                if (to > at->length) to = at->length;
                if (rand_r(&seed) & 64) put(at->fd, all + from, to - from, at->offset + (off_t)from);
            }
        }
        die();
    }
    if (here && is_plan("short")) {
        no_room = 1;
        if (at->parts && at->length > 1) return -1 - (ssize_t)(at->length / 2);
    }
    if (is_plan("late") && (here || points == plan_point + 1)) {
        if (here && at->parts) {
            char *all = flat(at);
            put(at->fd, all, at->length, at->offset);
            free(all);
        }
        record(at, (int)plan_number, HIT);
        return plan_number;
    }
    if (is_plan("fail") && (here || (plan_on && points > plan_point && plan_number != ENOSPC))) {
        no_room = plan_on && plan_number == ENOSPC;
        record(at, (int)plan_number, HIT);
        return plan_number;
    }
    if (no_room && takes_room(at->kind)) {
        record(at, ENOSPC, HIT);
        return ENOSPC;
    }
    return 0;
}

static ssize_t end(const struct point *at, ssize_t result) {
    int error = result < 0 ? errno : 0;
    record(at, error, 0);
    pthread_mutex_unlock(&turn);
    errno = error;
    return result;
}

static ssize_t refused(ssize_t error) {
    pthread_mutex_unlock(&turn);
    errno = (int)error;
    return -1;
}

/* Bytes -------------------------------------------------------------------------------------------------------------- */

/* All the ways to write: `offset` -1 is the file's position, which moves on. */
static ssize_t write_parts(enum kind kind, int fd, const struct iovec *parts, int count, off_t offset) {
    struct point at = {.kind = kind, .fd = fd, .parts = parts, .parts_count = count};
    int moves = offset < 0;
    pthread_mutex_lock(&turn);
    if (!path_of_fd(fd, at.path)) {
        pthread_mutex_unlock(&turn);
        return moves ? syscall(SYS_writev, fd, parts, count) : REAL(pwritev)(fd, parts, count, offset);
    }
    for (int i = 0; i < count; i++) at.length += parts[i].iov_len;
    if (moves) offset = lseek(fd, 0, fcntl(fd, F_GETFL) & O_APPEND ? SEEK_END : SEEK_CUR);
    at.offset = offset;
    ssize_t verdict = meet(&at);
    if (verdict > 0) return refused(verdict);
    if (verdict < 0) {
        size_t half = (size_t)(-1 - verdict);
        char *all = flat(&at);
        put(fd, all, half, offset);
        free(all);
        at.length = half;
        if (moves) lseek(fd, offset + (off_t)half, SEEK_SET);
        return end(&at, (ssize_t)half);
    }
    ssize_t written = moves ? syscall(SYS_writev, fd, parts, count) : REAL(pwritev)(fd, parts, count, offset);
    if (written >= 0) at.length = (size_t)written;
    return end(&at, written);
}

ssize_t write(int fd, const void *bytes, size_t length) {
    struct iovec part = {(void *)bytes, length};
    return write_parts(WRITE, fd, &part, 1, -1);
}

ssize_t pwrite(int fd, const void *bytes, size_t length, off_t offset) {
    struct iovec part = {(void *)bytes, length};
    return write_parts(PWRITE, fd, &part, 1, offset);
}

ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t offset) { return pwrite(fd, bytes, length, offset); }

ssize_t writev(int fd, const struct iovec *parts, int count) { return write_parts(WRITEV, fd, parts, count, -1); }

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset) {
    struct point at = {.kind = PWRITEV};
    pthread_mutex_lock(&turn);
    int ours = path_of_fd(fd, at.path);
    pthread_mutex_unlock(&turn);
    if (!ours) return syscall(SYS_pwritev, fd, parts, count, (long)offset, (long)0);
    return write_parts(PWRITEV, fd, parts, count, offset);
}

ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t offset) {
    return pwritev(fd, parts, count, offset);
}

/* Calls on a descriptor that go through once the plan allows it; KEEP is what else the record has. */
#define ON_FD(KIND, FD, KEEP, CALL)                       \
    struct point at = {.kind = KIND, .fd = FD};           \
    pthread_mutex_lock(&turn);                            \
    if (!path_of_fd(FD, at.path)) {                       \
        pthread_mutex_unlock(&turn);                      \
        return CALL;                                      \
    }                                                     \
    KEEP;                                                 \
    ssize_t verdict = meet(&at);                          \
    if (verdict > 0) return (int)refused(verdict)

int fsync(int fd) {
    ON_FD(FSYNC, fd, , (int)syscall(SYS_fsync, fd));
    return (int)end(&at, 0);
}

int fdatasync(int fd) {
    ON_FD(FDATASYNC, fd, , (int)syscall(SYS_fdatasync, fd));
    return (int)end(&at, 0);
}

int sync_file_range(int fd, off64_t offset, off64_t length, unsigned flags) {
    ON_FD(SYNC_FILE_RANGE, fd, , (int)syscall(SYS_sync_file_range, fd, offset, length, flags));
    return (int)end(&at, 0);
}

int msync(void *address, size_t length, int flags) {
    struct point at = {.kind = MSYNC, .fd = -1, .length = length};
    if (!root_bytes) return (int)syscall(SYS_msync, address, length, flags);
    pthread_mutex_lock(&turn);
    ssize_t verdict = meet(&at);
    if (verdict > 0) return (int)refused(verdict);
    return (int)end(&at, syscall(SYS_msync, address, length, flags));
}

int ftruncate(int fd, off_t length) {
    ON_FD(FTRUNCATE, fd, at.offset = length, (int)syscall(SYS_ftruncate, fd, length));
    return (int)end(&at, syscall(SYS_ftruncate, fd, length));
}

int ftruncate64(int fd, off64_t length) { return ftruncate(fd, length); }

int fallocate(int fd, int mode, off_t offset, off_t length) {
    ON_FD(FALLOCATE, fd, (at.offset = offset, at.length = (size_t)length),
          (int)syscall(SYS_fallocate, fd, mode, offset, length));
    return (int)end(&at, syscall(SYS_fallocate, fd, mode, offset, length));
}

int fallocate64(int fd, int mode, off64_t offset, off64_t length) { return fallocate(fd, mode, offset, length); }

int posix_fallocate(int fd, off_t offset, off_t length) { return fallocate(fd, 0, offset, length) ? errno : 0; }

int posix_fallocate64(int fd, off64_t offset, off64_t length) { return posix_fallocate(fd, offset, length); }

/* The kernel's copies are not offered: whoever asks has a loop of reads and writes to fall back on, which we see. */
static int into_root(int fd) {
    char path[PATH_MAX];
    return path_of_fd(fd, path);
}

ssize_t sendfile(int to, int from, off_t *offset, size_t length) {
    if (into_root(to)) return errno = ENOTSOCK, -1;
    return syscall(SYS_sendfile, to, from, offset, length);
}

ssize_t sendfile64(int to, int from, off64_t *offset, size_t length) { return sendfile(to, from, offset, length); }

ssize_t copy_file_range(int from, off64_t *at, int to, off64_t *to_at, size_t length, unsigned flags) {
    if (into_root(to)) return errno = EXDEV, -1;
    return syscall(SYS_copy_file_range, from, at, to, to_at, length, flags);
}

/* Names -------------------------------------------------------------------------------------------------------------- */

static int open_file(int folder, const char *name, int flags, mode_t mode) {
    struct point at = {.kind = CREATE, .fd = -1};
    pthread_mutex_lock(&turn);
    if (!path_of_name(folder, name, at.path) || (flags & O_TMPFILE) == O_TMPFILE) {
        pthread_mutex_unlock(&turn);
        return (int)syscall(SYS_openat, folder, name, flags, mode);
    }
    int creates = flags & O_CREAT && syscall(SYS_faccessat, AT_FDCWD, at.path, F_OK);
    int cuts = flags & O_TRUNC && !creates;
    if (creates || cuts) {
        if (cuts) at.kind = FTRUNCATE;
        ssize_t verdict = meet(&at);
        if (verdict > 0) return (int)refused(verdict);
    }
    int fd = (int)syscall(SYS_openat, folder, name, flags & ~(O_DSYNC | O_SYNC), mode);
    if (fd >= 0 && fd < FDS) dsync[fd] = (flags & (O_DSYNC | O_SYNC)) != 0;
    if (!creates && !cuts) {
        int error = errno;
        pthread_mutex_unlock(&turn);
        errno = error;
        return fd;
    }
    at.fd = fd;
    return (int)end(&at, fd);
}

#define MODE                                                          \
    mode_t mode = 0;                                                  \
    if (flags & (O_CREAT | __O_TMPFILE)) {                            \
        va_list rest;                                                 \
        va_start(rest, flags);                                        \
        mode = (mode_t)va_arg(rest, int);                             \
        va_end(rest);                                                 \
    }

int open(const char *name, int flags, ...) {
    MODE return open_file(AT_FDCWD, name, flags, mode);
}
int open64(const char *name, int flags, ...) {
    MODE return open_file(AT_FDCWD, name, flags | O_LARGEFILE, mode);
}
int openat(int folder, const char *name, int flags, ...) {
    MODE return open_file(folder, name, flags, mode);
}
int openat64(int folder, const char *name, int flags, ...) {
    MODE return open_file(folder, name, flags | O_LARGEFILE, mode);
}

/* Calls on names; FIND fills in the paths and is false where they are not ours. */
#define ON_NAME(KIND, FIND, CALL)                   \
    struct point at = {.kind = KIND, .fd = -1};     \
    pthread_mutex_lock(&turn);                      \
    if (!(FIND)) {                                  \
        pthread_mutex_unlock(&turn);                \
        return (int)(CALL);                         \
    }                                               \
    ssize_t verdict = meet(&at);                    \
    if (verdict > 0) return (int)refused(verdict);  \
    return (int)end(&at, CALL)

static int rename_file(int folder, const char *name, int folder2, const char *name2, unsigned flags) {
    ON_NAME(RENAME, path_of_name(folder, name, at.path) | path_of_name(folder2, name2, at.path2),
            syscall(SYS_renameat2, folder, name, folder2, name2, flags));
}

int rename(const char *name, const char *name2) { return rename_file(AT_FDCWD, name, AT_FDCWD, name2, 0); }
int renameat(int folder, const char *name, int folder2, const char *name2) {
    return rename_file(folder, name, folder2, name2, 0);
}
int renameat2(int folder, const char *name, int folder2, const char *name2, unsigned flags) {
    return rename_file(folder, name, folder2, name2, flags);
}

int linkat(int folder, const char *name, int folder2, const char *name2, int flags) {
    ON_NAME(LINK, path_of_name(folder, name, at.path) | path_of_name(folder2, name2, at.path2),
            syscall(SYS_linkat, folder, name, folder2, name2, flags));
}
int link(const char *name, const char *name2) { return linkat(AT_FDCWD, name, AT_FDCWD, name2, 0); }

int unlinkat(int folder, const char *name, int flags) {
    ON_NAME(flags & AT_REMOVEDIR ? RMDIR : UNLINK, path_of_name(folder, name, at.path),
            syscall(SYS_unlinkat, folder, name, flags));
}
int unlink(const char *name) { return unlinkat(AT_FDCWD, name, 0); }
int rmdir(const char *name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }

int mkdirat(int folder, const char *name, mode_t mode) {
    ON_NAME(MKDIR, path_of_name(folder, name, at.path), syscall(SYS_mkdirat, folder, name, mode));
}
int mkdir(const char *name, mode_t mode) { return mkdirat(AT_FDCWD, name, mode); }

/* Room --------------------------------------------------------------------------------------------------------------- */

int statvfs(const char *name, struct statvfs *found) {
    int result = REAL(statvfs)(name, found);
    if (no_room) found->f_bavail = found->f_bfree = 0;
    return result;
}

int fstatvfs(int fd, struct statvfs *found) {
    int result = REAL(fstatvfs)(fd, found);
    if (no_room) found->f_bavail = found->f_bfree = 0;
    return result;
}

int statvfs64(const char *name, struct statvfs64 *found) { return statvfs(name, (struct statvfs *)found); }
int fstatvfs64(int fd, struct statvfs64 *found) { return fstatvfs(fd, (struct statvfs *)found); }
