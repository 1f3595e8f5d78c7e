/* Between a process and its disk (LD_PRELOAD): every operation on files under one directory is written to a trace, and one of
 * them, chosen by its number, can fail or hang. Does nothing until disk_start is called.
 *
 * What the C library is asked for is seen whoever asks: Python, Arrow, torch. A trace has one record an operation, in the order
 * in which they took place over all processes: a line "name pid count fd number bytes path [path]" with tabs between, then so many
 * bytes of data. Of an fsync that fails there is a record too, named "unsynced".
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define FILES 65536
enum { NONE, READS, WRITES, WRITTEN };

static char place[PATH_MAX];             /* operations under it are seen */
static int trace = -1;                   /* where records go; -1: nowhere */
static volatile int on;
static char opened[FILES];               /* how a descriptor was opened, if it is under `place` */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static long count;                       /* operations of this process that change something */
static long fail_from = -1, fail_until = -1;
static int fail_errno;
static double fail_seconds;              /* > 0: hang that long instead, before the operation */
static char last[PATH_MAX + 64];         /* what was made to fail first */
static __thread long mine = -1;          /* number of this thread's operation */
static double jump;                      /* > 0: the clock of the wall jumps by up to so many seconds */

#define NEXT(name) static __typeof__(name) *next; if (!next) next = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

static int absolute(int folder, const char *path, char *out) {
    char base[PATH_MAX] = "";
    if (!path) return 0;
    if (path[0] != '/') {
        if (folder == AT_FDCWD) {
            if (!getcwd(base, sizeof base)) return 0;
        } else {
            char link[64];
            snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
            ssize_t n = readlink(link, base, sizeof base - 1);
            if (n < 0) return 0;
            base[n] = 0;
        }
        strncat(base, "/", sizeof base - strlen(base) - 1);
    }
    snprintf(out, PATH_MAX, "%s%s", base, path);
    size_t n = strlen(place);
    return on && !strncmp(out, place, n) && (out[n] == '/' || !out[n]);
}

static void record(const char *name, int fd, long number, const void *data, size_t bytes, const char *one, const char *two) {
    if (trace < 0) return;
    char line[2 * PATH_MAX + 128];
    int n = snprintf(line, sizeof line, "%s\t%d\t%ld\t%d\t%ld\t%zu\t%s\t%s\n", name, getpid(), mine, fd, number, bytes, one, two);
    struct iovec parts[2] = {{line, n}, {(void *)data, bytes}};
    if (writev(trace, parts, bytes ? 2 : 1) != (ssize_t)(n + bytes)) abort();
}

static void enter(void) { pthread_mutex_lock(&lock); if (trace >= 0) flock(trace, LOCK_EX); }
static void leave(void) { int e = errno; if (trace >= 0) flock(trace, LOCK_UN); pthread_mutex_unlock(&lock); errno = e; }

/* An operation that changes something begins: whether it is to fail, with errno set. */
static int fails(const char *name, const char *path) {
    pthread_mutex_lock(&lock);
    long number = mine = count++;
    int chosen = number >= fail_from && number < fail_until;
    if (chosen && !last[0]) snprintf(last, sizeof last, "%s %s", name, path);
    pthread_mutex_unlock(&lock);
    if (!chosen) return 0;
    if (fail_seconds > 0) {
        struct timespec t = {(time_t)fail_seconds, (long)((fail_seconds - (time_t)fail_seconds) * 1e9)};
        while (nanosleep(&t, &t) && errno == EINTR);
        return 0;
    }
    /* A full disk still lets go of what is deleted. */
    if (fail_errno != EIO && (!strncmp(name, "unlink", 6) || !strncmp(name, "rmdir", 5))) return 0;
    errno = fail_errno;
    return 1;
}

static const char *name_of(int fd, char *out) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, out, PATH_MAX - 1);
    out[n < 0 ? 0 : n] = 0;
    return out;
}

/* ---- what a test calls ---- */

void disk_start(const char *directory, const char *file) {
    snprintf(place, sizeof place, "%s", directory);
    trace = file && file[0] ? open(file, O_WRONLY | O_CREAT | O_APPEND, 0644) : -1;
    count = 0;
    last[0] = 0;
    on = 1;
}

void disk_stop(void) { on = 0; if (trace >= 0) close(trace); trace = -1; }
void disk_fail(long from, long until, int error, double seconds) {
    fail_from = from, fail_until = until, fail_errno = error, fail_seconds = seconds;
}
void disk_mark(const char *text) { enter(); record("mark", -1, 0, "", 0, text, ""); leave(); }
long disk_count(void) { return count; }
const char *disk_last(void) { return last; }
void disk_jump(double seconds) { jump = seconds; }

/* ---- the C library's functions ---- */

static int opening(int (*next)(int, const char *, int, ...), int folder, const char *path, int flags, mode_t mode) {
    char whole[PATH_MAX];
    if (!on || !absolute(folder, path, whole)) return next(folder, path, flags, mode);
    int writes = (flags & O_ACCMODE) != O_RDONLY || flags & (O_CREAT | O_TRUNC);
    if (writes && fails("open", whole)) return -1;
    enter();
    struct stat status;
    int made = flags & O_CREAT && lstat(whole, &status);
    int fd = next(folder, path, flags, mode);
    if (fd >= 0 && fd < FILES) {
        char now[PATH_MAX];
        opened[fd] = writes ? WRITES : READS;
        record(made ? "create" : flags & O_TRUNC ? "empty" : "open", fd, 0, "", 0, name_of(fd, now), "");
    }
    leave();
    return fd;
}

#define MODE mode_t mode = 0; if (flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE) { va_list a; va_start(a, flags); mode = va_arg(a, int); va_end(a); }
static int (*next_openat(void))(int, const char *, int, ...) { NEXT(openat); return next; }
int openat(int folder, const char *path, int flags, ...) { MODE return opening(next_openat(), folder, path, flags, mode); }
int openat64(int folder, const char *path, int flags, ...) { MODE return opening(next_openat(), folder, path, flags | O_LARGEFILE, mode); }
int open(const char *path, int flags, ...) { MODE return opening(next_openat(), AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE return opening(next_openat(), AT_FDCWD, path, flags | O_LARGEFILE, mode); }

static int seen(int fd) { return on && fd >= 0 && fd < FILES && opened[fd]; }

int close(int fd) {
    NEXT(close);
    if (!seen(fd)) return next(fd);
    int broken = opened[fd] == WRITTEN && fails("close", "");
    int error = errno;
    enter();
    opened[fd] = NONE;
    record("close", fd, 0, "", 0, "", "");
    int result = next(fd);
    leave();
    if (broken) { errno = error; return -1; }  /* the descriptor is gone all the same */
    return result;
}

static ssize_t writing(int fd, const void *data, size_t bytes, off_t at, ssize_t (*next)(int, const void *, size_t, off_t)) {
    char path[PATH_MAX];
    if (fails("write", name_of(fd, path))) return -1;
    enter();
    ssize_t done = next(fd, data, bytes, at);
    opened[fd] = WRITTEN;
    if (done > 0) record("write", fd, at, data, done, "", "");
    leave();
    return done;
}

static ssize_t (*next_pwrite(void))(int, const void *, size_t, off_t) { NEXT(pwrite); return next; }
ssize_t pwrite(int fd, const void *data, size_t bytes, off_t at) {
    return seen(fd) ? writing(fd, data, bytes, at, next_pwrite()) : next_pwrite()(fd, data, bytes, at);
}
ssize_t pwrite64(int fd, const void *data, size_t bytes, off64_t at) { return pwrite(fd, data, bytes, at); }

static ssize_t plain_write(int fd, const void *data, size_t bytes, off_t at) {
    NEXT(write);
    (void)at;
    return next(fd, data, bytes);
}
ssize_t write(int fd, const void *data, size_t bytes) {
    if (!seen(fd)) return plain_write(fd, data, bytes, 0);
    off_t at = lseek(fd, 0, fcntl(fd, F_GETFL) & O_APPEND ? SEEK_END : SEEK_CUR);
    return writing(fd, data, bytes, at, plain_write);
}

static int syncing(int fd, int (*next)(int)) {
    char path[PATH_MAX];
    if (!seen(fd)) return next(fd);
    if (fails("fsync", name_of(fd, path))) {
        enter();
        record("unsynced", fd, 0, "", 0, "", "");
        leave();
        return -1;
    }
    enter();
    int result = next(fd);
    if (!result) record("fsync", fd, 0, "", 0, "", "");
    leave();
    return result;
}
int fsync(int fd) { NEXT(fsync); return syncing(fd, next); }
int fdatasync(int fd) { NEXT(fdatasync); return syncing(fd, next); }

int ftruncate(int fd, off_t size) {
    NEXT(ftruncate);
    char path[PATH_MAX];
    if (!seen(fd)) return next(fd, size);
    if (fails("ftruncate", name_of(fd, path))) return -1;
    enter();
    int result = next(fd, size);
    if (!result) record("truncate", fd, size, "", 0, "", "");
    leave();
    return result;
}
int ftruncate64(int fd, off64_t size) { return ftruncate(fd, size); }

/* Operations on names. */
#define NAMES(name, call, one_folder, one, two_folder, two)                                             \
    char first[PATH_MAX], second[PATH_MAX] = "";                                                        \
    int here = absolute(one_folder, one, first);                                                        \
    here = absolute(two_folder, two, second) || here;                                                   \
    if (!on || !here) return call;                                                                      \
    if (fails(name, first)) return -1;                                                                  \
    enter();                                                                                            \
    int result = call;                                                                                  \
    if (!result) record(name, -1, 0, "", 0, first, second);                                             \
    leave();                                                                                            \
    return result

int rename(const char *a, const char *b) { NEXT(rename); NAMES("rename", next(a, b), AT_FDCWD, a, AT_FDCWD, b); }
int renameat(int da, const char *a, int db, const char *b) { NEXT(renameat); NAMES("rename", next(da, a, db, b), da, a, db, b); }
int link(const char *a, const char *b) { NEXT(link); NAMES("link", next(a, b), AT_FDCWD, a, AT_FDCWD, b); }
int linkat(int da, const char *a, int db, const char *b, int flags) { NEXT(linkat); NAMES("link", next(da, a, db, b, flags), da, a, db, b); }
int unlink(const char *a) { NEXT(unlink); NAMES("unlink", next(a), AT_FDCWD, a, AT_FDCWD, NULL); }
int rmdir(const char *a) { NEXT(rmdir); NAMES("rmdir", next(a), AT_FDCWD, a, AT_FDCWD, NULL); }
int unlinkat(int d, const char *a, int flags) { NEXT(unlinkat); NAMES(flags & AT_REMOVEDIR ? "rmdir" : "unlink", next(d, a, flags), d, a, AT_FDCWD, NULL); }
int mkdir(const char *a, mode_t mode) { NEXT(mkdir); NAMES("mkdir", next(a, mode), AT_FDCWD, a, AT_FDCWD, NULL); }
int mkdirat(int d, const char *a, mode_t mode) { NEXT(mkdirat); NAMES("mkdir", next(d, a, mode), d, a, AT_FDCWD, NULL); }

/* Copies made within the kernel are not seen here: refused, so that whoever asks reads and writes instead. */
ssize_t sendfile(int out, int in, off_t *at, size_t bytes) {
    NEXT(sendfile);
    if (!seen(out)) return next(out, in, at, bytes);
    errno = EINVAL;
    return -1;
}
ssize_t sendfile64(int out, int in, off64_t *at, size_t bytes) { return sendfile(out, in, at, bytes); }

int clock_gettime(clockid_t clock, struct timespec *time) {
    NEXT(clock_gettime);
    int result = next(clock, time);
    if (!result && jump > 0 && clock == CLOCK_REALTIME) time->tv_sec += (time_t)(jump * ((double)random() / RAND_MAX * 2 - 1));
    return result;
}
