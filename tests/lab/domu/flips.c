/* A guest's program that flips as fast as its screens allow, and measures: a vdispl frontend of its own, so that it sees each response and
 * each event.
 *
 *   flips SIZE DEVICES CONNECTORS    flip on all connectors of so many devices
 *   flips create SIZE                connect, then create and destroy a buffer of this size, again and again
 *
 * `flips` flips without an end. When XenStore's data/go changes to a window's name, a number of flips and the screens' period in ns, it
 * writes "begin" and the name to data/flips, measures this number of flips of each screen, writes "end" and the name, and then the
 * results to data/results. Times are in microseconds: p50, p99 and maximum of all screens' flips. `response`: from the notification to the
 * response. `late`: of the event, behind the window's earliest event in its period, reckoned from the refresh that follows the event
 * before; a flip that misses its refresh is late by a period. */
#include "frontend.h"

enum { SCREENS = 8, MOST = 4096, SKIPPED = 30 };

struct screen {
    char path[32];         /* device/vdispl/D/C */
    struct screen *first;  /* connector 0 of the device, whose ring takes the requests for buffers */
    struct page ring, events;
    uint32_t ring_port, events_port, sent, answered, seen;
    int64_t asked;              /* when the last flip was sent */
    unsigned begun;             /* flips since the window began */
    int64_t response[MOST], event[MOST];
};
static struct screen screens[SCREENS];
static int screen_count;
static uint16_t next_id;

static int64_t ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}

/* Send a request: operation, then the fields from byte 8 on. */
static void request(struct screen *s, uint32_t operation, const uint32_t *fields, unsigned count)
{
    volatile uint32_t *slot = s->ring.memory + 16 + 16 * (s->sent & 31);
    for (unsigned i = 0; i < 14; i++) slot[2 + i] = i < count ? fields[i] : 0;
    slot[1] = 0;
    slot[0] = operation << 16 | ++next_id;
    s->ring.memory[3] = s->sent + 1; /* rsp_event: notify us */
    __atomic_store_n((uint32_t *)s->ring.memory, ++s->sent, __ATOMIC_RELEASE);
    __sync_synchronize();
    if (s->ring.memory[1] == s->sent) notify(s->ring_port); /* req_event */
}

static int wait_response(struct screen *s)
{
    for (double until = now() + 10; s->ring.memory[2] != s->sent; usleep(1000))
        if (now() > until) { errno = ETIMEDOUT; die("no response"); }
    __sync_synchronize();
    s->answered = s->sent;
    return (int)s->ring.memory[16 + 16 * ((s->sent - 1) & 31) + 1];
}

static void must(struct screen *s, uint32_t operation, const uint32_t *fields, unsigned count)
{
    request(s, operation, fields, count);
    int status = wait_response(s);
    if (status) { errno = -status; die("refused"); }
}

/* Grant so many new pages, and pages for a directory of them before. Return the directory's first reference. */
static uint32_t grant_buffer(unsigned count)
{
    unsigned directories = (count + 1022) / 1023, all = directories + count;
    struct { uint16_t domid, flags; uint32_t count; uint64_t index; uint32_t refs[]; } *ask = calloc(1, 16 + 4 * all);
    ask->flags = 1; /* writable */
    ask->count = all;
    if (ioctl(gntalloc, 0x00184705, ask) < 0) die("gntalloc");
    uint32_t *memory = mmap(0, 4096ul * all, PROT_READ | PROT_WRITE, MAP_SHARED, gntalloc, (off_t)ask->index);
    if (memory == MAP_FAILED) die("gntalloc mmap");
    for (unsigned d = 0; d < directories; d++) {
        memory[1024 * d] = d + 1 < directories ? ask->refs[d + 1] : 0;
        for (unsigned i = 0; i < 1023 && 1023 * d + i < count; i++)
            memory[1024 * d + 1 + i] = ask->refs[directories + 1023 * d + i];
    }
    uint32_t first = ask->refs[0];
    free(ask);
    return first;
}

static void create_dbuf(struct screen *s, uint32_t cookie, unsigned width, unsigned height, uint32_t directory)
{
    uint32_t fields[] = { cookie, 0, width, height, 32, width * height * 4, 0, directory, 0 };
    must(s, 0x10, fields, 9);
}

static void publish(const char *of, const char *key, unsigned value)
{
    char name[32];
    snprintf(name, sizeof name, "%s/%s", strrchr(of, '/') + 1, key);
    set(name, value);
}

static void choose_device(int device)
{
    char key[64];
    snprintf(front, sizeof front, "device/vdispl/%d", device);
    snprintf(key, sizeof key, "%s/backend", front);
    if (xs(XS_READ, key, 0, backend, sizeof backend) < 0) die("no backend");
}

/* Connect all devices; each is published before the first is waited for, since the bare backend serves all of them or none. */
static void connect_devices(int devices, int connectors)
{
    for (int device = 0; device < devices; device++) {
        choose_device(device);
        set("state", 1);
        if (wait_backend(2, 0, 30) < 0) die("the backend does not wait");
        for (int i = 0; i < connectors; i++) {
            struct screen *s = &screens[screen_count++];
            s->first = s - i;
            snprintf(s->path, sizeof s->path, "%.20s/%d", front, i);
            s->ring = grant();
            s->events = grant();
            s->ring.memory[1] = s->ring.memory[3] = 1; /* req_event, rsp_event */
            s->ring_port = offer();
            s->events_port = offer();
            publish(s->path, "req-ring-ref", s->ring.ref);
            publish(s->path, "req-event-channel", s->ring_port);
            publish(s->path, "evt-ring-ref", s->events.ref);
            publish(s->path, "evt-event-channel", s->events_port);
        }
        set("state", 3);
    }
    for (int device = 0; device < devices; device++) {
        choose_device(device);
        if (wait_backend(4, 0, 30) < 0) die("not connected");
        set("state", 4);
    }
}

/* The cookie of one of a screen's two buffers, and of its framebuffer. The screens of a device share its cookies. */
static uint32_t cookie(const struct screen *s, uint32_t number) { return 0x100 + 2 * (uint32_t)(s - screens) + (number & 1); }

static void flip(struct screen *s)
{
    uint32_t fields[] = { cookie(s, s->sent), 0 };
    s->asked = ns();
    request(s, 0x15, fields, 2);
}

static void light(struct screen *s, unsigned width, unsigned height)
{
    for (uint32_t i = 0; i < 2; i++) {
        create_dbuf(s->first, cookie(s, i), width, height, grant_buffer((width * height * 4 + 4095) / 4096));
        uint32_t attach[] = { cookie(s, i), 0, cookie(s, i), 0, width, height, 0x34325258 /* XR24 */ };
        must(s->first, 0x12, attach, 7);
    }
    uint32_t show[] = { cookie(s, 0), 0, 0, 0, width, height, 32 };
    must(s, 0x14, show, 7);
}

static int by_size(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static void quantiles(char *to, const char *name, int64_t *values, unsigned count)
{
    qsort(values, count, sizeof *values, by_size);
    sprintf(to + strlen(to), " %s %.1f %.1f %.1f", name, values[count / 2] / 1e3, values[count - 1 - count / 100] / 1e3,
            values[count - 1] / 1e3);
}

/* How late each event of a screen was; `count` + 1 times become `count`. */
static void lateness(int64_t *late, const int64_t *times, unsigned count, int64_t period)
{
    int64_t earliest = 0;
    for (unsigned i = 0; i <= count; i++) { /* of all, the one that is furthest ahead of a grid through the first */
        int64_t phase = (times[i] - times[0]) % period;
        if (phase > period / 2) phase -= period;
        if (phase < earliest) earliest = phase;
    }
    int64_t grid = times[0] + earliest;
    for (unsigned i = 1; i <= count; i++) {
        int64_t before = (times[i - 1] - grid) / period;
        late[i - 1] = times[i] - grid - (before + 1) * period;
    }
}

/* Write a window's results to XenStore. The flips go on meanwhile. */
static void report(const char *name, unsigned count, int64_t period)
{
    static int64_t responses[SCREENS * MOST], late[SCREENS * MOST];
    char text[300] = "";
    unsigned n = count - SKIPPED - 1;
    int64_t time = 0;
    for (int i = 0; i < screen_count; i++) {
        struct screen *s = &screens[i];
        memcpy(responses + i * n, s->response + SKIPPED + 1, n * sizeof *responses);
        lateness(late + i * n, s->event + SKIPPED, n, period);
        time += s->event[count - 1] - s->event[SKIPPED];
    }
    sprintf(text, "end %s screens %d intervals %u ms %.1f", name, screen_count, n * screen_count, time / 1e6);
    quantiles(text, "response", responses, n * screen_count);
    quantiles(text, "late", late, n * screen_count);
    xs(XS_WRITE, "data/results", text, 0, 0);
}

static void run(void)
{
    char name[64] = "", text[80];
    unsigned count = 0;
    long long period = 0;
    xs(XS_WATCH, "data/go", "go", 0, 0);
    xs(XS_WRITE, "data/flips", "flipping", 0, 0);
    for (int i = 0; i < screen_count; i++) flip(&screens[i]);
    for (;;) {
        struct pollfd waits[] = { { evtchn, POLLIN, 0 }, { xenbus, POLLIN, 0 } };
        if (poll(waits, 2, 5000) <= 0) { errno = ETIMEDOUT; die("no flip has ended"); }
        if (waits[1].revents & POLLIN) {
            get_message(0, 0);
            if (!count && xs(XS_READ, "data/go", 0, text, sizeof text) == 0 && sscanf(text, "%63s %u %lld", name, &count, &period) == 3) {
                for (int i = 0; i < screen_count; i++) screens[i].begun = 0;
                snprintf(text, sizeof text, "begin %s", name);
                xs(XS_WRITE, "data/flips", text, 0, 0);
            }
        }
        if (!(waits[0].revents & POLLIN)) continue;
        uint32_t ports[2 * SCREENS];
        ssize_t got = read(evtchn, ports, sizeof ports);
        int64_t at = ns();
        if (got <= 0 || write(evtchn, ports, (size_t)got) != got) die("event channels");
        unsigned ended = 0;
        for (int i = 0; i < screen_count; i++) {
            struct screen *s = &screens[i];
            /* The event page first: an event that is seen comes after its response. */
            uint32_t shown = __atomic_load_n((uint32_t *)s->events.memory + 1, __ATOMIC_ACQUIRE);
            if (s->answered != __atomic_load_n((uint32_t *)s->ring.memory + 2, __ATOMIC_ACQUIRE)) {
                if (++s->answered != s->sent || s->ring.memory[16 + 16 * ((s->answered - 1) & 31) + 1]) die("flip refused");
                if (s->begun < MOST) s->response[s->begun] = at - s->asked;
            }
            if (s->seen != shown) {
                s->events.memory[0] = ++s->seen;
                if (s->begun < MOST) s->event[s->begun] = at;
                s->begun++;
                flip(s);
            }
            ended += s->begun >= count;
        }
        if (count && ended == (unsigned)screen_count) {
            snprintf(text, sizeof text, "end %s", name);
            xs(XS_WRITE, "data/flips", text, 0, 0);
            report(name, count, period);
            count = 0;
        }
    }
}

static void create_again(unsigned width, unsigned height)
{
    uint32_t directory = grant_buffer((width * height * 4 + 4095) / 4096);
    for (unsigned turn = 1;; turn++) {
        uint32_t destroy[] = { 7, 0 };
        create_dbuf(&screens[0], 7, width, height, directory);
        must(&screens[0], 0x11, destroy, 2);
        printf("flips: created %u\n", turn);
    }
}

int main(int count, char **words)
{
    unsigned width = 0, height = 0;
    int creating = count == 3 && !strcmp(words[1], "create");
    if (count != 4 && !creating) return 2;
    if (sscanf(words[creating ? 2 : 1], "%ux%u", &width, &height) != 2) return 2;
    xenbus = open("/dev/xen/xenbus", O_RDWR);
    gntalloc = open("/dev/xen/gntalloc", O_RDWR);
    evtchn = open("/dev/xen/evtchn", O_RDWR);
    if (xenbus < 0 || gntalloc < 0 || evtchn < 0) die("open");
    setvbuf(stdout, 0, _IOLBF, 0);
    if (creating) {
        connect_devices(1, 1);
        create_again(width, height);
    }
    connect_devices(atoi(words[2]), atoi(words[3]));
    for (int i = 0; i < screen_count; i++) light(&screens[i], width, height);
    puts("flips: flipping");
    run();
}
