/* A guest's program that plays a vdispl frontend against its backend, with no kernel driver in between.
 *
 *   hostile flood SECONDS    connect, then keep the ring full of random requests, notifying for each
 *   hostile index            connect, then claim an impossible number of requests
 *   hostile cycle TIMES:N    connect and leave, each fourth time with a buffer and a framebuffer; again and again, on N devices at once
 *   hostile grants           create buffers of grants that are for transfer only, that are free, that are good
 *   hostile limits           attach framebuffers that a graphics card may not be able to show, and one that it is
 *   hostile storm SECONDS    change the frontend's state as fast as XenStore takes it
 *   hostile windows TIMES    framebuffers of odd strides, offsets and sizes, shown and flipped
 *   hostile alone NAME       write and remove the toolstack's nodes one by one, their directories left as they are
 *   hostile backend DOMID    name another guest's directory as our backend's, then ask to be connected
 *   hostile name NAME        replace the toolstack's nodes by a unique-id of this NAME, then ask to be connected
 *   hostile resolution SIZE  replace them by a resolution of this SIZE
 *   hostile forge NAME       replace them by both
 *
 * Each prints one line that begins with "hostile:".
 */
#include "frontend.h"

static struct page ring, events;
static uint32_t ring_port, events_port;

static int connect_frontend(double seconds)
{
    set("state", 1);
    if (wait_backend(2, 0, seconds) < 0) return -1;
    ring = grant();
    events = grant();
    ring.memory[1] = ring.memory[3] = 1; /* req_event, rsp_event */
    ring_port = offer();
    events_port = offer();
    set("0/req-ring-ref", ring.ref);
    set("0/req-event-channel", ring_port);
    set("0/evt-ring-ref", events.ref);
    set("0/evt-event-channel", events_port);
    set("state", 3);
    if (wait_backend(4, 0, seconds) < 0) return -1;
    set("state", 4);
    return 0;
}

/* Leave as Linux's driver removal does. The backend must have let go: the kernel would keep pages that it still maps. */
static int leave(double seconds)
{
    set("state", 5);
    if (wait_backend(4, 1, seconds) < 0) return -1;
    set("state", 6);
    unbind(ring_port);
    unbind(events_port);
    end_grant(&ring);
    end_grant(&events);
    return 0;
}

static uint64_t seed = 88172645463325252ull;
static uint64_t rnd(void) { seed ^= seed << 13; seed ^= seed >> 7; return seed ^= seed << 17; }

/* A request of random fields: often of a known operation, with few cookies, so that some of them are almost right. */
static void random_request(volatile uint32_t *slot)
{
    for (int i = 0; i < 16; i++) slot[i] = rnd() % 3 ? (uint32_t)(rnd() % 5) : (uint32_t)rnd();
    uint32_t operation = rnd() % 8 ? 0x10 + (uint32_t)(rnd() % 7) : (uint32_t)(rnd() & 0xff);
    slot[0] = (uint32_t)(rnd() & 0xffff) | operation << 16;
}

static void flood(double seconds)
{
    uint32_t produced = 0, consumed = 0;
    unsigned long good = 0, refused = 0;
    double until = now() + seconds;
    while (now() < until) {
        while (produced - consumed < 32) {
            random_request(ring.memory + 16 + 16 * (produced & 31));
            __sync_synchronize();
            ring.memory[0] = ++produced;
        }
        notify(ring_port);
        while (consumed != ring.memory[2]) {
            __sync_synchronize();
            int32_t status = (int32_t)ring.memory[16 + 16 * (consumed & 31) + 1];
            if (status == 0) good++; else refused++;
            consumed++;
        }
        events.memory[0] = events.memory[1]; /* events read */
        if (backend_state() != 4) break;
    }
    printf("hostile: flood: %lu answered with 0, %lu with an error, backend state %d\n", good, refused, backend_state());
}

/* One request and its answer's status; -9999: none came. */
static int send_request(uint32_t *request)
{
    static uint16_t id;
    uint32_t produced = ring.memory[0];
    request[0] = (request[0] << 16) | ++id;
    for (int i = 0; i < 16; i++) ring.memory[16 + 16 * (produced & 31) + i] = request[i];
    __sync_synchronize();
    ring.memory[0] = produced + 1;
    notify(ring_port);
    for (double until = now() + 5; now() < until; usleep(1000)) {
        events.memory[0] = events.memory[1];
        if (ring.memory[2] == produced + 1) return (int32_t)ring.memory[16 + 16 * (produced & 31) + 1];
    }
    return -9999;
}

static struct { uint32_t width, height, bits, offset, size, format, fb_width, fb_height; } window[] = {
    { 16384, 16384, 32, 0, 262144, 0x34325258, 16384, 16384 }, /* far larger than its pages */
    { 256, 256, 32, 0, 262144, 0x34325258, 256, 257 },         /* the framebuffer larger than its buffer */
    { 61, 50, 16, 0, 61 * 2 * 50, 0x36314752, 61, 50 },        /* RG16, a stride that is no multiple of 4 */
    { 33, 99, 24, 0, 33 * 3 * 99, 0x34324752, 33, 99 },        /* RG24, an odd one */
    { 200, 100, 32, 2, 80002, 0x34325258, 200, 100 },          /* an odd offset */
    { 200, 100, 32, 4096, 84096, 0x34325258, 100, 50 },
    { 1, 1, 32, 0, 4, 0x34325258, 1, 1 },
    { 0, 0, 0, 0, 262144, 0x34325258, 1, 60000 },
    { 512, 127, 32, 0, 262144, 0x56595559, 512, 127 },         /* YUYV of 32 bits */
    { 127, 512, 16, 68, 68 + 127 * 2 * 512, 0x32315241, 126, 511 }, /* AR12 */
};

static void windows(int times)
{
    enum { PAGES = 64, COUNT = sizeof window / sizeof window[0] };
    static struct page pages[PAGES];
    struct page directory = grant();
    int shown = 0, refused = 0, silent = 0;
    for (int i = 0; i < PAGES; i++) {
        pages[i] = grant();
        directory.memory[1 + i] = pages[i].ref;
        memset((void *)pages[i].memory, i * 3, 4096);
    }
    for (int turn = 0; turn < times * COUNT; turn++) {
        int i = turn % COUNT, status[4] = { 0 };
        uint32_t create[16] = { 0x10, 0, 7, 0, window[i].width, window[i].height, window[i].bits, window[i].size, 0,
                                directory.ref, window[i].offset };
        uint32_t attach[16] = { 0x12, 0, 7, 0, 9, 0, window[i].fb_width, window[i].fb_height, window[i].format };
        uint32_t show[16] = { 0x14, 0, 9, 0, 0, 0, window[i].fb_width, window[i].fb_height, 32 };
        status[0] = send_request(create);
        status[1] = send_request(attach);
        status[2] = send_request(show);
        for (int flip = 0; flip < 5; flip++, usleep(40000)) {
            uint32_t again[16] = { 0x15, 0, 9, 0 };
            status[3] = send_request(again);
        }
        uint32_t off[16] = { 0x14 }, detach[16] = { 0x13, 0, 9, 0 }, destroy[16] = { 0x11, 0, 7, 0 };
        silent += (send_request(off) == -9999) + (send_request(detach) == -9999) + (send_request(destroy) == -9999);
        for (int n = 0; n < 4; n++) silent += status[n] == -9999;
        if (status[2] == 0) shown++; else refused++;
    }
    for (int i = 0; i < PAGES; i++) end_grant(&pages[i]);
    end_grant(&directory);
    printf("hostile: windows: %d shown, %d refused, %d requests without an answer\n", shown, refused, silent);
}

/* A request of these fields, from byte 8 on; returns the status of the response. */
static int ask_fields(uint8_t operation, const uint32_t *fields, unsigned count)
{
    uint32_t request[16] = { operation };
    memcpy(request + 2, fields, 4 * count);
    int status = send_request(request);
    if (status == -9999) { errno = ETIMEDOUT; die("no answer"); }
    return status;
}

/* DBUF_CREATE of just this size. */
static int create_buffer(uint32_t cookie, uint32_t width, uint32_t height, uint32_t bpp, uint32_t directory)
{
    uint32_t fields[] = { cookie, 0, width, height, bpp, width * height * bpp / 8, 0, directory, 0 };
    return ask_fields(0x10, fields, 9);
}

static int attach_framebuffer(uint32_t cookie, uint32_t buffer, uint32_t width, uint32_t height, const char *format)
{
    uint32_t fields[] = { buffer, 0, cookie, 0, width, height, 0 };
    memcpy(&fields[6], format, 4);
    return ask_fields(0x12, fields, 7);
}

static int destroy_buffer(uint32_t cookie)
{
    uint32_t fields[] = { cookie, 0 };
    return ask_fields(0x11, fields, 2);
}

static struct page pages[64];
static unsigned page_count;

/* A directory of so many pages: all of them granted. */
static struct page *directory_of(unsigned count)
{
    struct page *directory = &pages[page_count++];
    *directory = grant();
    directory->memory[0] = 0;
    for (unsigned i = 0; i < count; i++) {
        struct page *page = &pages[page_count++];
        *page = grant();
        directory->memory[1 + i] = page->ref;
    }
    return directory;
}

static void end_pages(void) { while (page_count) end_grant(&pages[--page_count]); }

static int cycle(int device, int times)
{
    char key[300];
    int done = 0;
    snprintf(front, sizeof front, "device/vdispl/%d", device);
    snprintf(key, sizeof key, "%s/backend", front);
    if (xs(XS_READ, key, 0, backend, sizeof backend) < 0) die("no backend");
    snprintf(key, sizeof key, "%s/state", backend);
    patience = xs(XS_WATCH, key, "backend", 0, 0) < 0 ? 20 : 500;
    while (done < times && connect_frontend(60) == 0) {
        int wrong = 0;
        if (done % 4 == 0) {
            uint32_t directory = directory_of(1)->ref;
            wrong = create_buffer(0x1000, 32, 32, 32, directory) || attach_framebuffer(0x2000, 0x1000, 32, 32, "XR24");
        }
        if (leave(60) || wrong) break;
        end_pages();
        done++;
    }
    return done;
}

/* So many devices at once, each in a process of its own. */
static void cycles(int times, int devices)
{
    int results[2];
    if (pipe(results) < 0) die("pipe");
    for (int device = 0; device < devices; device++)
        if (fork() == 0) {
            xenbus = open("/dev/xen/xenbus", O_RDWR);
            gntalloc = open("/dev/xen/gntalloc", O_RDWR);
            evtchn = open("/dev/xen/evtchn", O_RDWR);
            int done = cycle(device, times);
            exit(write(results[1], &done, sizeof done) != sizeof done);
        }
    int all = 0, done;
    for (int device = 0; device < devices; device++)
        if (read(results[0], &done, sizeof done) == sizeof done) all += done;
    while (wait(0) > 0) {}
    printf("hostile: cycle: %d times\n", all);
}

/* A grant that only receives a page (GTF_accept_transfer). The kernel makes no such grants: an unused frame of the grant table
 * is put in the place of a page of ours, where its entries can be written. */
static uint32_t transfer_grant(void)
{
    enum { FRAME = 8, PER_FRAME = 512 };
    uint64_t entry = 0;
    volatile uint32_t *memory = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || mlock((void *)memory, 4096) < 0) die("mlock");
    memory[0] = 1;
    int pagemap = open("/proc/self/pagemap", O_RDONLY), privcmd = open("/dev/xen/privcmd", O_RDWR);
    if (pagemap < 0 || privcmd < 0) die("pagemap, privcmd");
    if (pread(pagemap, &entry, 8, (off_t)((uintptr_t)memory / 4096 * 8)) != 8) die("pagemap");
    struct { uint16_t domid, size; uint32_t space; uint64_t index, frame; } place =
        { 0x7ff0, 0, 1, FRAME, entry & 0x7fffffffffffff }; /* DOMID_SELF, XENMAPSPACE_grant_table */
    struct { uint64_t number, arguments[5]; } call = { 12, { 7, (uintptr_t)&place } }; /* XENMEM_add_to_physmap */
    if (ioctl(privcmd, 0x00305000, &call) < 0) die("add_to_physmap");
    enum { ENTRY = 5 };
    memory[2 * ENTRY + 1] = 0;
    __sync_synchronize();
    memory[2 * ENTRY] = 2; /* GTF_accept_transfer, for domain 0 */
    return FRAME * PER_FRAME + ENTRY;
}

static void grants(void)
{
    uint32_t transfer = transfer_grant();
    struct page *directory = directory_of(1);
    uint32_t good = directory->memory[1];
    struct { const char *name; uint32_t in_directory, directory; } cases[] = {
        { "transfer", transfer, directory->ref }, { "transfer directory", good, transfer },
        { "free", 8 * 512 + 7, directory->ref }, { "good", good, directory->ref },
    };
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        directory->memory[1] = cases[i].in_directory;
        int status = create_buffer(0x1000 + 64 * i, 32, 32, 32, cases[i].directory);
        printf("hostile: grants: %s: %d\n", cases[i].name, status);
        if (status == 0) destroy_buffer(0x1000 + 64 * i);
    }
    end_pages();
}

static void limits(void)
{
    struct { uint32_t width, height, bpp; const char *format; } cases[] = {
        { 16384, 1, 32, "XR24" }, { 64, 64, 16, "RG16" }, { 64, 64, 32, "XR24" },
    };
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint32_t width = cases[i].width, height = cases[i].height, bpp = cases[i].bpp;
        struct page *directory = directory_of((width * height * bpp / 8 + 4095) / 4096);
        int created = create_buffer(0x1000, width, height, bpp, directory->ref);
        int status = attach_framebuffer(0x2000, 0x1000, width, height, cases[i].format);
        printf("hostile: limits: %ux%u %s: %d %d\n", width, height, cases[i].format, created, status);
        destroy_buffer(0x1000);
        end_pages();
    }
}

/* Ask to be connected, and tell what the backend says to it. */
static void refused(const char *what)
{
    char error[300] = "", path[300];
    int connected = connect_frontend(6) == 0;
    snprintf(path, sizeof path, "%s/error", backend);
    xs(XS_READ, path, 0, error, sizeof error);
    printf("hostile: %s: %s: %s\n", what, connected ? "connected" : "refused", error);
}

static void alone(const char *value)
{
    const char *paths[] = { FRONT "/0/unique-id", FRONT "/0/resolution", FRONT "/be-alloc" };
    for (unsigned i = 0; i < sizeof paths / sizeof *paths; i++) {
        int written = xs(XS_WRITE, paths[i], value, 0, 0) == 0;
        int removed = xs(XS_RM, paths[i], 0, 0, 0) == 0;
        printf("hostile: alone: %s: %s, %s\n", paths[i], written ? "written" : "not written", removed ? "removed" : "not removed");
    }
}

static void forge_backend(const char *domid)
{
    char other[300], own[256];
    strcpy(own, backend);
    snprintf(other, sizeof other, "/local/domain/0/backend/vdispl/%s/0", domid);
    if (xs(XS_WRITE, FRONT "/backend", other, 0, 0) < 0) die("backend");
    refused("backend");
    xs(XS_WRITE, FRONT "/backend", own, 0, 0);
}

/* The connector's directory is ours, and goes with all that is in it: what is made there anew is ours too. */
static void forge(const char *what, const char *name, const char *resolution)
{
    set("state", 1);
    if (xs(XS_RM, FRONT "/0", 0, 0, 0) < 0) die("rm");
    if (name) xs(XS_WRITE, FRONT "/0/unique-id", name, 0, 0);
    if (resolution) xs(XS_WRITE, FRONT "/0/resolution", resolution, 0, 0);
    refused(what);
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    double number = argc > 2 ? atof(argv[2]) : 0;
    xenbus = open("/dev/xen/xenbus", O_RDWR);
    gntalloc = open("/dev/xen/gntalloc", O_RDWR);
    evtchn = open("/dev/xen/evtchn", O_RDWR);
    if (xenbus < 0 || gntalloc < 0 || evtchn < 0) die("open");
    if (xs(XS_READ, FRONT "/backend", 0, backend, sizeof backend) < 0) die("no backend");
    setvbuf(stdout, 0, _IOLBF, 0);

    if (!strcmp(what, "flood")) {
        if (connect_frontend(20) < 0) die("not connected");
        flood(number);
        leave(10);
    } else if (!strcmp(what, "index")) {
        if (connect_frontend(20) < 0) die("not connected");
        ring.memory[0] = 1000;
        notify(ring_port);
        int shut = wait_backend(4, 1, 10);
        leave(10);
        int again = connect_frontend(20);
        printf("hostile: index: %s, %s\n", shut ? "still connected" : "shut off", again ? "gone for good" : "back again");
        leave(10);
    } else if (!strcmp(what, "cycle")) {
        const char *devices = argc > 2 ? strchr(argv[2], ':') : 0;
        cycles((int)number, devices ? atoi(devices + 1) : 1);
    } else if (!strcmp(what, "grants") || !strcmp(what, "limits")) {
        if (connect_frontend(20) < 0) die("not connected");
        if (*what == 'g') grants(); else limits();
        leave(10);
    } else if (!strcmp(what, "storm")) {
        const unsigned states[] = { 1, 3, 4, 6, 5, 3, 7, 1, 99 };
        unsigned long changes = 0;
        for (double until = now() + number; now() < until; changes++) set("state", states[changes % 9]);
        set("state", 6);
        printf("hostile: storm: %lu states\n", changes);
    } else if (!strcmp(what, "windows")) {
        if (connect_frontend(20) < 0) die("not connected");
        windows((int)number);
        leave(10);
    } else if (!strcmp(what, "alone") && argc > 2) {
        alone(argv[2]);
    } else if (!strcmp(what, "backend") && argc > 2) {
        forge_backend(argv[2]);
    } else if (!strcmp(what, "name") && argc > 2) {
        forge(what, argv[2], 0);
    } else if (!strcmp(what, "resolution") && argc > 2) {
        forge(what, 0, argv[2]);
    } else if (!strcmp(what, "forge") && argc > 2) {
        forge(what, argv[2], "1024x768");
    } else {
        printf("hostile: what?\n");
    }
    return 0;
}
