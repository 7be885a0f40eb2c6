/* One piece of work for the benchmarks: prints the nanoseconds of that work alone.
 *
 *   work read FILE [forget]      reads a file to its end; with "forget" it first drops the file from the page cache
 *   work small DIR               opens, reads and closes every regular file of a folder
 *   work walk DIR                lists a tree and asks for the attributes of every entry
 *   work create DIR N            makes N files of 100 bytes and removes them
 *   work write FILE MIB          writes a file and waits until it is on the disk; then removes it, which is not timed
 *   work fork N                  runs a program that does nothing, N times
 *   work send HOST PORT MIB      sends over TCP, and waits for one byte that says that all of it has come
 *   work receive HOST PORT       receives over TCP until the end
 *   work trips HOST PORT N       sends one byte and waits for one byte, N times
 *   work compute MIB             a simple hash over MIB MiB of zeros
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { READ_BLOCK = 128 << 10, MIB = 1 << 20, SMALL = 100 };
static char block[MIB];
static struct timespec began;

static void fail(const char *what) {
    fprintf(stderr, "work: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void start(void) { clock_gettime(CLOCK_MONOTONIC, &began); }

static void stop(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    printf("%lld\n", (now.tv_sec - began.tv_sec) * 1000000000LL + now.tv_nsec - began.tv_nsec);
}

static long number(const char *text) {
    char *end;
    long value = strtol(text, &end, 10);
    if (*text == 0 || *end != 0 || value < 1) {
        errno = EINVAL;
        fail(text);
    }
    return value;
}

static int open_or_fail(int folder, const char *path, int flags) {
    int fd = openat(folder, path, flags | O_CLOEXEC, 0644);
    if (fd < 0) fail(path);
    return fd;
}

static void read_all(int fd, const char *path) {
    ssize_t got;
    while ((got = read(fd, block, READ_BLOCK)) > 0) {}
    if (got < 0) fail(path);
}

static void write_all(int fd, const char *path, size_t size) {
    for (size_t done = 0; done < size;) {
        ssize_t wrote = write(fd, block + done, size - done);
        if (wrote < 0) fail(path);
        done += wrote;
    }
}

static void do_read(const char *path, int forget) {
    if (forget) {
        int fd = open_or_fail(AT_FDCWD, path, O_RDONLY);
        if ((errno = posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED))) fail(path);
        close(fd);
    }
    start();
    int fd = open_or_fail(AT_FDCWD, path, O_RDONLY);
    read_all(fd, path);
    close(fd);
    stop();
}

static DIR *open_folder(int parent, const char *path) {
    DIR *folder = fdopendir(open_or_fail(parent, path, O_RDONLY | O_DIRECTORY));
    if (!folder) fail(path);
    return folder;
}

/* The next entry that is neither the folder nor its parent. */
static struct dirent *next(DIR *folder, const char *path) {
    for (;;) {
        errno = 0;
        struct dirent *entry = readdir(folder);
        if (!entry && errno) fail(path);
        if (!entry || (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))) return entry;
    }
}

static struct stat attributes(DIR *folder, const char *name) {
    struct stat stat;
    if (fstatat(dirfd(folder), name, &stat, AT_SYMLINK_NOFOLLOW)) fail(name);
    return stat;
}

static void do_small(const char *path) {
    start();
    DIR *folder = open_folder(AT_FDCWD, path);
    for (struct dirent *entry; (entry = next(folder, path));) {
        if (entry->d_type == DT_UNKNOWN ? !S_ISREG(attributes(folder, entry->d_name).st_mode) : entry->d_type != DT_REG)
            continue;
        int fd = open_or_fail(dirfd(folder), entry->d_name, O_RDONLY);
        read_all(fd, entry->d_name);
        close(fd);
    }
    closedir(folder);
    stop();
}

static void walk(int parent, const char *path) {
    DIR *folder = open_folder(parent, path);
    for (struct dirent *entry; (entry = next(folder, path));)
        if (S_ISDIR(attributes(folder, entry->d_name).st_mode)) walk(dirfd(folder), entry->d_name);
    closedir(folder);
}

static void do_create(const char *path, long count) {
    char name[32];
    int folder = open_or_fail(AT_FDCWD, path, O_RDONLY | O_DIRECTORY);
    start();
    for (long i = 0; i < count; i++) {
        snprintf(name, sizeof name, "new-%ld", i);
        int fd = open_or_fail(folder, name, O_WRONLY | O_CREAT | O_EXCL);
        write_all(fd, name, SMALL);
        if (close(fd)) fail(name);
    }
    for (long i = 0; i < count; i++) {
        snprintf(name, sizeof name, "new-%ld", i);
        if (unlinkat(folder, name, 0)) fail(name);
    }
    stop();
}

static void do_write(const char *path, long mib) {
    start();
    int fd = open_or_fail(AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC);
    for (long i = 0; i < mib; i++) write_all(fd, path, MIB);
    if (fsync(fd)) fail(path);
    if (close(fd)) fail(path);
    stop();
    if (unlink(path)) fail(path);
}

static void do_fork(long count) {
    char *arguments[] = {"work", "nothing", NULL}, *environment[] = {NULL};
    start();
    for (long i = 0; i < count; i++) {
        int status;
        pid_t child = fork();
        if (child < 0) fail("fork");
        if (child == 0) {
            execve("/proc/self/exe", arguments, environment);
            _exit(127);
        }
        if (waitpid(child, &status, 0) < 0) fail("waitpid");
        if (status) {
            fprintf(stderr, "work: the program that does nothing ended with status %#x\n", status);
            exit(1);
        }
    }
    stop();
}

static int connect_to(const char *host, const char *port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(number(port))};
    if (inet_pton(AF_INET, host, &address.sin_addr) != 1) {
        errno = EINVAL;
        fail(host);
    }
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address)) fail(host);
    return fd;
}

static void answer(int fd, const char *host) {
    ssize_t got = read(fd, block, 1);
    if (got == 0) errno = ECONNRESET;
    if (got != 1) fail(host);
}

static void do_send(const char *host, const char *port, long mib) {
    start();
    int fd = connect_to(host, port);
    for (long i = 0; i < mib; i++) write_all(fd, host, MIB);
    if (shutdown(fd, SHUT_WR)) fail(host);
    answer(fd, host);
    stop();
}

static void do_receive(const char *host, const char *port) {
    start();
    read_all(connect_to(host, port), host);
    stop();
}

static void do_trips(const char *host, const char *port, long count) {
    int on = 1, fd = connect_to(host, port);
    if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on)) fail(host);
    start();
    for (long i = 0; i < count; i++) {
        write_all(fd, host, 1);
        answer(fd, host);
    }
    stop();
}

static void do_compute(long mib) {
    volatile uint64_t keep;
    uint64_t hash = 0xcbf29ce484222325;
    start();
    for (long i = 0; i < mib; i++)
        for (size_t at = 0; at < MIB; at++) hash = (hash ^ (unsigned char)block[at]) * 0x100000001b3;
    keep = hash;
    (void)keep;
    stop();
}

int main(int count, char **words) {
    const char *what = count > 1 ? words[1] : "";
#define IS(name, least, most) (!strcmp(what, name) && count - 2 >= (least) && count - 2 <= (most))
    if (IS("nothing", 0, 0)) return 0;
    if (IS("read", 1, 1)) do_read(words[2], 0);
    else if (IS("read", 2, 2) && !strcmp(words[3], "forget")) do_read(words[2], 1);
    else if (IS("small", 1, 1)) do_small(words[2]);
    else if (IS("walk", 1, 1)) start(), walk(AT_FDCWD, words[2]), stop();
    else if (IS("create", 2, 2)) do_create(words[2], number(words[3]));
    else if (IS("write", 2, 2)) do_write(words[2], number(words[3]));
    else if (IS("fork", 1, 1)) do_fork(number(words[2]));
    else if (IS("send", 3, 3)) do_send(words[2], words[3], number(words[4]));
    else if (IS("receive", 2, 2)) do_receive(words[2], words[3]);
    else if (IS("trips", 3, 3)) do_trips(words[2], words[3], number(words[4]));
    else if (IS("compute", 1, 1)) do_compute(number(words[2]));
    else {
        fprintf(stderr, "work: unknown or incomplete: %s; the head of work.c lists what there is\n", what);
        return 2;
    }
    return 0;
}
