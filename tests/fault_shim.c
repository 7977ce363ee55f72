/* Makes the n-th system call that writes below one folder fail; for LD_PRELOAD, see faults.py.

   Counted are the calls that write, make, rename or flush a file there. Descriptors are told by
   /proc/self/fd, paths by their beginning. Two kinds go past this: what C's own buffers write at a
   flush or a close (fwrite is counted instead), and the renameat by which safetensors puts the file
   that it wrote in place, as it asks the kernel itself. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { NONE, WHOLE, SHORT }; /* how a call fails: not, at once, after half of its bytes */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char folder[PATH_MAX];
static char seen[1 << 22]; /* the calls, a line each: name and path */
static size_t seen_length;
static long count, target;
static int error, persistent;
static int half_written = -1; /* the descriptor whose next write fails, as its last one was short */

/* Count from 0 the calls below `below` (an absolute path without links; "" counts none), and let
   the nth fail with error_number, or all from the nth on; 0: none. */
void fault_arm(const char *below, long nth, int error_number, int lasting) {
    pthread_mutex_lock(&lock);
    snprintf(folder, sizeof folder, "%s", below);
    count = 0, target = nth, error = error_number, persistent = lasting, half_written = -1;
    seen_length = 0, seen[0] = 0;
    pthread_mutex_unlock(&lock);
}

long fault_count(void) { return count; }
const char *fault_log(void) { return seen; }

/* The path of a descriptor; "" where there is none. */
static void path_of(int descriptor, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    path[length > 0 ? length : 0] = 0;
}

static void absolute(int directory, const char *name, char *path) {
    char base[PATH_MAX] = "";
    if (name[0] == '/') {
        snprintf(path, PATH_MAX, "%s", name);
        return;
    }
    if (directory != AT_FDCWD)
        path_of(directory, base);
    else if (!getcwd(base, sizeof base))
        base[0] = 0;
    if (snprintf(path, PATH_MAX, "%s/%s", base, name) >= PATH_MAX) path[0] = 0;
}

/* Whether this call, of so many bytes to be written (0 where it writes none), is to fail. */
static int judge(const char *call, const char *path, int descriptor, size_t bytes) {
    size_t length = strlen(folder);
    if (!length || strncmp(path, folder, length) || (path[length] && path[length] != '/'))
        return NONE;
    pthread_mutex_lock(&lock);
    count++;
    int space = (int)(sizeof seen - seen_length);
    int written = snprintf(seen + seen_length, space, "%s %s\n", call, path);
    seen_length = written < space ? seen_length + written : sizeof seen - 1;
    int how = NONE;
    if (target && (count == target || (persistent && count > target)))
        how = WHOLE;
    if (how && count == target && error == ENOSPC && bytes > 1) {
        how = SHORT;
        half_written = descriptor;
    } else if (bytes && descriptor >= 0 && descriptor == half_written) {
        how = WHOLE;
        half_written = -1;
    }
    pthread_mutex_unlock(&lock);
    return how;
}

static int judge_file(const char *call, int descriptor, size_t bytes) {
    int before = errno, how = NONE;
    if (folder[0] && descriptor != STDOUT_FILENO && descriptor != STDERR_FILENO) {
        char path[PATH_MAX];
        path_of(descriptor, path);
        how = judge(call, path, descriptor, bytes);
    }
    errno = how == WHOLE ? error : before;
    return how;
}

static int judge_name(const char *call, int directory, const char *name) {
    int before = errno, how = NONE;
    if (folder[0]) {
        char path[PATH_MAX];
        absolute(directory, name, path);
        how = judge(call, path, -1, 0);
    }
    errno = how == WHOLE ? error : before;
    return how;
}

#define REAL(type, name, ...)                        \
    static type (*real)(__VA_ARGS__);                \
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, #name)

ssize_t write(int descriptor, const void *data, size_t bytes) {
    REAL(ssize_t, write, int, const void *, size_t);
    int how = judge_file("write", descriptor, bytes);
    return how == WHOLE ? -1 : real(descriptor, data, how == SHORT ? bytes / 2 : bytes);
}

#define PWRITE(name, offset_type)                                                             \
    ssize_t name(int descriptor, const void *data, size_t bytes, offset_type at) {            \
        REAL(ssize_t, name, int, const void *, size_t, offset_type);                          \
        int how = judge_file(#name, descriptor, bytes);                                       \
        return how == WHOLE ? -1 : real(descriptor, data, how == SHORT ? bytes / 2 : bytes, at); \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

ssize_t writev(int descriptor, const struct iovec *parts, int number) {
    REAL(ssize_t, writev, int, const struct iovec *, int);
    int how = judge_file("writev", descriptor, number > 1 ? 2 : 1);
    return how == WHOLE ? -1 : real(descriptor, parts, how == SHORT ? number / 2 : number);
}

size_t fwrite(const void *data, size_t size, size_t number, FILE *file) {
    REAL(size_t, fwrite, const void *, size_t, size_t, FILE *);
    int how = judge_file("fwrite", fileno(file), number);
    if (how == WHOLE) return 0;
    if (how == NONE) return real(data, size, number, file);
    number = real(data, size, number / 2, file);
    errno = error;
    half_written = -1; /* who calls fwrite takes a part for a failure */
    return number;
}

#define FLUSH(name)                                                \
    int name(int descriptor) {                                     \
        REAL(int, name, int);                                      \
        return judge_file(#name, descriptor, 0) ? -1 : real(descriptor); \
    }
FLUSH(fsync)
FLUSH(fdatasync)

/* A full disk lets a file become smaller. */
static int judge_size(const char *call, int descriptor, off64_t size) {
    struct stat64 now;
    if (error == ENOSPC && !fstat64(descriptor, &now) && size <= now.st_size) return NONE;
    return judge_file(call, descriptor, 0);
}

#define TRUNCATE(name, offset_type)                                                      \
    int name(int descriptor, offset_type size) {                                         \
        REAL(int, name, int, offset_type);                                               \
        return judge_size(#name, descriptor, size) ? -1 : real(descriptor, size);        \
    }
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)

#define ALLOCATE(name, offset_type)                                                      \
    int name(int descriptor, offset_type at, offset_type size) {                         \
        REAL(int, name, int, offset_type, offset_type);                                  \
        return judge_file(#name, descriptor, 0) ? error : real(descriptor, at, size);    \
    }
ALLOCATE(posix_fallocate, off_t)
ALLOCATE(posix_fallocate64, off64_t)

int mkdir(const char *name, mode_t mode) {
    REAL(int, mkdir, const char *, mode_t);
    return judge_name("mkdir", AT_FDCWD, name) ? -1 : real(name, mode);
}

int rename(const char *from, const char *to) {
    REAL(int, rename, const char *, const char *);
    return judge_name("rename", AT_FDCWD, to) ? -1 : real(from, to);
}

int renameat(int from_at, const char *from, int to_at, const char *to) {
    REAL(int, renameat, int, const char *, int, const char *);
    return judge_name("renameat", to_at, to) ? -1 : real(from_at, from, to_at, to);
}

int renameat2(int from_at, const char *from, int to_at, const char *to, unsigned flags) {
    REAL(int, renameat2, int, const char *, int, const char *, unsigned);
    return judge_name("renameat2", to_at, to) ? -1 : real(from_at, from, to_at, to, flags);
}

int link(const char *from, const char *to) {
    REAL(int, link, const char *, const char *);
    return judge_name("link", AT_FDCWD, to) ? -1 : real(from, to);
}

int linkat(int from_at, const char *from, int to_at, const char *to, int flags) {
    REAL(int, linkat, int, const char *, int, const char *, int);
    return judge_name("linkat", to_at, to) ? -1 : real(from_at, from, to_at, to, flags);
}

static int makes(int flags) { return flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE; }

static mode_t mode_after(int flags, va_list rest) {
    return makes(flags) ? va_arg(rest, mode_t) : 0;
}

#define OPEN(name)                                                                     \
    int name(const char *file, int flags, ...) {                                       \
        REAL(int, name, const char *, int, mode_t);                                    \
        va_list rest;                                                                  \
        va_start(rest, flags);                                                         \
        mode_t mode = mode_after(flags, rest);                                         \
        va_end(rest);                                                                  \
        return makes(flags) && judge_name(#name, AT_FDCWD, file) ? -1 : real(file, flags, mode); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                   \
    int name(int at, const char *file, int flags, ...) {                               \
        REAL(int, name, int, const char *, int, mode_t);                               \
        va_list rest;                                                                  \
        va_start(rest, flags);                                                         \
        mode_t mode = mode_after(flags, rest);                                         \
        va_end(rest);                                                                  \
        return makes(flags) && judge_name(#name, at, file) ? -1 : real(at, file, flags, mode); \
    }
OPENAT(openat)
OPENAT(openat64)
