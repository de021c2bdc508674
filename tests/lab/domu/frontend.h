/* A vdispl frontend in a guest's program, with no kernel driver in between: XenStore over /dev/xen/xenbus, grants, event channels. */
#pragma once
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { XS_READ = 2, XS_WATCH = 4, XS_WRITE = 11, XS_RM = 13, XS_WATCH_EVENT = 15, XS_ERROR = 16 };
#define FRONT "device/vdispl/0"

static char front[32] = FRONT;
static int patience = 5; /* milliseconds between looks at the backend's state, where it is not watched */
static int xenbus, gntalloc, evtchn;
static char backend[256];

static inline void die(const char *what) { printf("%s: %s: %s\n", program_invocation_short_name, what, strerror(errno)); exit(1); }

static inline void get(void *to, size_t size)
{
    for (size_t have = 0; have < size;) {
        ssize_t got = read(xenbus, (char *)to + have, size - have);
        if (got <= 0) die("xenbus read");
        have += (size_t)got;
    }
}

/* A message: its type, its payload as a string in `out`. */
static inline uint32_t get_message(char *out, size_t room)
{
    char payload[4097];
    uint32_t head[4];
    get(head, 16);
    get(payload, head[3]);
    payload[head[3]] = 0;
    if (out) {
        memcpy(out, payload, head[3] < room ? head[3] + 1 : room);
        out[room - 1] = 0;
    }
    return head[0];
}

/* One XenStore request; the reply's payload in `out`, or -1. */
static inline int xs(uint32_t type, const char *path, const char *value, char *out, size_t room)
{
    char message[1024];
    size_t length = strlen(path) + 1 + (value ? strlen(value) : 0) + (type == XS_WATCH);
    uint32_t head[4] = { type, 1, 0, (uint32_t)length }, answer;
    memcpy(message, head, 16);
    strcpy(message + 16, path);
    if (value) strcpy(message + 16 + strlen(path) + 1, value);
    if (write(xenbus, message, 16 + length) < 0) die("xenbus write");
    while ((answer = get_message(out, room)) == XS_WATCH_EVENT) {}
    return answer == XS_ERROR ? -1 : 0;
}

static inline void set(const char *key, unsigned value)
{
    char path[128], text[16];
    snprintf(path, sizeof path, "%s/%s", front, key);
    snprintf(text, sizeof text, "%u", value);
    if (xs(XS_WRITE, path, text, 0, 0) < 0) printf("%s: cannot write %s\n", program_invocation_short_name, key);
}

static inline int backend_state(void)
{
    char path[300], value[16];
    snprintf(path, sizeof path, "%s/state", backend);
    return xs(XS_READ, path, 0, value, sizeof value) < 0 ? 0 : atoi(value);
}

static inline double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Wait for a state of the backend, or with `other` for any other one. */
static inline int wait_backend(int state, int other, double seconds)
{
    double until = now() + seconds;
    while ((backend_state() == state) == other) {
        if (now() > until) return -1;
        struct pollfd event = { xenbus, POLLIN, 0 };
        if (poll(&event, 1, patience) > 0) get_message(0, 0);
    }
    return 0;
}

struct page { uint32_t ref; uint64_t index; volatile uint32_t *memory; };

static inline struct page grant(void)
{
    struct { uint16_t domid, flags; uint32_t count; uint64_t index; uint32_t refs[1]; } ask = { 0, 1, 1, 0, { 0 } };
    if (ioctl(gntalloc, 0x00184705, &ask) < 0) die("gntalloc");
    void *memory = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, gntalloc, (off_t)ask.index);
    if (memory == MAP_FAILED) die("gntalloc mmap");
    return (struct page){ ask.refs[0], ask.index, memory };
}

static inline void end_grant(struct page *page)
{
    struct { uint64_t index; uint32_t count, pad; } ask = { page->index, 1, 0 };
    munmap((void *)page->memory, 4096);
    if (ioctl(gntalloc, 0x00104706, &ask) < 0) die("gntalloc end");
}

static inline uint32_t offer(void)
{
    uint32_t remote = 0;
    int port = ioctl(evtchn, 0x00044502, &remote);
    if (port < 0) die("evtchn");
    return (uint32_t)port;
}

static inline void unbind(uint32_t port) { ioctl(evtchn, 0x00044503, &port); }
static inline void notify(uint32_t port) { ioctl(evtchn, 0x00044504, &port); }

