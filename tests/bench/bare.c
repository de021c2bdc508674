/* The yardstick of a page flip: a vdispl backend that makes the system calls that a flip needs, and no others.
 *
 *   bare CARD zero-copy|copy SCREEN...      SCREEN is CONNECTOR:DOMID:RING:EVENTS:RING-PORT:EVENTS-PORT
 *
 * CARD is a DRM node. CONNECTOR is the connector's id. The other numbers are what the guest has written to XenStore: references of
 * two pages and two event channels. "bare: ready" is written when the pages are mapped; the caller makes the handshake in XenStore.
 *
 * A flip makes these calls: epoll_wait, read of the event channels, the atomic commit (in copy mode a thread makes it after a memcpy
 * into one of two dumb buffers), notification, write that arms the port again; then epoll_wait, read of the card, notification.
 * It does what the protocol and the kernel demand, so it has the same fences and the same checks for more requests as displbe. It
 * trusts its guest and checks nothing, has no log, no clock, no quota, no fairness and no end: SIGTERM kills it.
 * For measurements in the lab only (tests/lab/test_counted.py). */
#define _GNU_SOURCE
#include <drm/drm.h>
#include <drm/drm_mode.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

typedef uint16_t domid_t;
typedef uint32_t grant_ref_t;
#include <xen/evtchn.h>
#include <xen/gntdev.h>

enum { DBUF_CREATE = 0x10, FB_ATTACH = 0x12, SET_CONFIG = 0x14, PG_FLIP = 0x15 };   /* displif.h, XENDISPL_OP_* */
enum { SLOT = 64, RING_SLOTS = 32, EVENT_SLOTS = 63 };                              /* after a header of one slot */
enum { REQ_PROD = 0, REQ_EVENT = 4, RSP_PROD = 8, RSP_EVENT = 12, IN_PROD = 4 };    /* bytes in the headers */
enum { SCREENS = 8, THINGS = 32 };

struct request {
    uint16_t id;
    uint8_t operation, reserved[5];
    union {
        struct { uint64_t dbuf; uint32_t width, height, bpp, size, flags, directory, offset; } create;
        struct { uint64_t dbuf, fb; uint32_t width, height, format; } attach;
        uint64_t fb; /* SET_CONFIG, PG_FLIP */
        uint8_t all[SLOT - 8];
    };
};

struct buffer { uint64_t cookie; uint32_t domid, handle, pitch; void *memory; };
struct frame { uint64_t cookie; uint32_t domid, fb, width, height; const struct buffer *buffer; };
struct dumb { uint32_t fb; void *memory; };

struct screen {
    uint8_t *ring, *events;
    uint32_t domid, ring_port, events_port, served, shown; /* requests and events so far */
    uint32_t connector, crtc, plane, fb_property;
    struct drm_mode_modeinfo modes[64];
    uint32_t mode_count;
    uint64_t pending; /* the framebuffer whose event the guest waits for */
    /* Copy mode. */
    struct dumb dumb[2];
    int back;
    size_t size;
    const struct frame *job;
    pthread_mutex_t lock;
    pthread_cond_t changed;
};

static int card, gntdev, evtchn, copying;
static struct screen screens[SCREENS];
static struct buffer buffers[THINGS]; /* a guest's cookies differ, also those of its devices */
static struct frame frames[THINGS];
static unsigned screen_count, buffer_count, frame_count;

static int check(int result, const char *what)
{
    if (result < 0) {
        perror(what);
        exit(1);
    }
    return result;
}

/* Grants */

static void *map_grants(uint32_t domid, const uint32_t *refs, uint32_t count, int protection)
{
    struct ioctl_gntdev_map_grant_ref *ask = calloc(1, sizeof *ask + count * sizeof *ask->refs);
    ask->count = count;
    for (uint32_t i = 0; i < count; i++)
        ask->refs[i] = (struct ioctl_gntdev_grant_ref){domid, refs[i]};
    check(ioctl(gntdev, IOCTL_GNTDEV_MAP_GRANT_REF, ask), "map");
    void *memory = mmap(0, 4096ul * count, protection, MAP_SHARED, gntdev, (off_t)ask->index);
    check(memory == MAP_FAILED ? -1 : 0, "mmap of grants");
    free(ask);
    return memory;
}

/* Read a page directory: a reference of the next page of it, then 1023 references. */
static uint32_t *directory(uint32_t domid, uint32_t ref, uint32_t count)
{
    uint32_t *refs = calloc(count + 1023, sizeof *refs);
    for (uint32_t have = 0; have < count; have += 1023) {
        uint32_t *page = map_grants(domid, &ref, 1, PROT_READ);
        memcpy(refs + have, page + 1, 1023 * sizeof *refs);
        ref = page[0];
        munmap(page, 4096);
    }
    return refs;
}

/* The card */

static void find_pipe(struct screen *s)
{
    uint32_t crtcs[16], connectors[16], encoders[16], fbs[16], planes[32], count = 64;
    struct drm_mode_card_res all = {.count_crtcs = 16, .count_connectors = 16, .count_encoders = 16, .count_fbs = 16};
    all.crtc_id_ptr = (uintptr_t)crtcs;
    all.connector_id_ptr = (uintptr_t)connectors;
    all.encoder_id_ptr = (uintptr_t)encoders;
    all.fb_id_ptr = (uintptr_t)fbs;
    check(ioctl(card, DRM_IOCTL_MODE_GETRESOURCES, &all), "resources");
    struct drm_mode_get_connector connector = {.connector_id = s->connector};
    check(ioctl(card, DRM_IOCTL_MODE_GETCONNECTOR, &connector), "connector"); /* detects, since it asks for no modes */
    connector.modes_ptr = (uintptr_t)s->modes;
    connector.encoders_ptr = (uintptr_t)encoders;
    connector.count_props = 0;
    connector.count_modes = connector.count_modes < count ? connector.count_modes : count;
    check(ioctl(card, DRM_IOCTL_MODE_GETCONNECTOR, &connector), "connector");
    s->mode_count = connector.count_modes;
    struct drm_mode_get_encoder encoder = {.encoder_id = encoders[0]};
    check(ioctl(card, DRM_IOCTL_MODE_GETENCODER, &encoder), "encoder");
    int index = __builtin_ctz(encoder.possible_crtcs);
    s->crtc = crtcs[index];

    struct drm_mode_get_plane_res list = {.plane_id_ptr = (uintptr_t)planes, .count_planes = 32};
    check(ioctl(card, DRM_IOCTL_MODE_GETPLANERESOURCES, &list), "planes");
    for (uint32_t i = 0; i < list.count_planes && !s->plane; i++) {
        uint32_t ids[64];
        uint64_t values[64];
        struct drm_mode_get_plane plane = {.plane_id = planes[i]};
        struct drm_mode_obj_get_properties has = {.obj_id = planes[i], .obj_type = DRM_MODE_OBJECT_PLANE, .count_props = 64};
        has.props_ptr = (uintptr_t)ids;
        has.prop_values_ptr = (uintptr_t)values;
        check(ioctl(card, DRM_IOCTL_MODE_GETPLANE, &plane), "plane");
        check(ioctl(card, DRM_IOCTL_MODE_OBJ_GETPROPERTIES, &has), "properties");
        for (uint32_t k = 0; k < has.count_props; k++) {
            struct drm_mode_get_property property = {.prop_id = ids[k]};
            check(ioctl(card, DRM_IOCTL_MODE_GETPROPERTY, &property), "property");
            if (!strcmp(property.name, "FB_ID")) s->fb_property = ids[k];
            if (!strcmp(property.name, "type") && values[k] == 1 && plane.possible_crtcs >> index & 1)
                s->plane = planes[i]; /* DRM_PLANE_TYPE_PRIMARY */
        }
    }
}

static uint32_t add_framebuffer(uint32_t handle, uint32_t width, uint32_t height, uint32_t pitch, uint32_t format)
{
    struct drm_mode_fb_cmd2 ask = {.width = width, .height = height, .pixel_format = format};
    ask.handles[0] = handle;
    ask.pitches[0] = pitch;
    check(ioctl(card, DRM_IOCTL_MODE_ADDFB2, &ask), "framebuffer");
    return ask.fb_id;
}

static void commit(struct screen *s, uint32_t fb)
{
    uint32_t one = 1;
    uint64_t value = fb;
    struct drm_mode_atomic ask = {.flags = DRM_MODE_ATOMIC_NONBLOCK | DRM_MODE_PAGE_FLIP_EVENT, .count_objs = 1};
    ask.objs_ptr = (uintptr_t)&s->plane;
    ask.count_props_ptr = (uintptr_t)&one;
    ask.props_ptr = (uintptr_t)&s->fb_property;
    ask.prop_values_ptr = (uintptr_t)&value;
    ask.user_data = (uintptr_t)s;
    while (ioctl(card, DRM_IOCTL_MODE_ATOMIC, &ask)) { /* EBUSY: the last commit is not quite done, although its event has come */
        if (errno != EBUSY) check(-1, "commit");
        usleep(1000);
    }
}

static void show_first(struct screen *s, const struct frame *frame)
{
    uint32_t fb = frame->fb;
    if (copying) {
        for (int i = 0; i < 2; i++) {
            struct drm_mode_create_dumb dumb = {.width = frame->width, .height = frame->height, .bpp = 32};
            check(ioctl(card, DRM_IOCTL_MODE_CREATE_DUMB, &dumb), "dumb buffer");
            struct drm_mode_map_dumb place = {.handle = dumb.handle};
            check(ioctl(card, DRM_IOCTL_MODE_MAP_DUMB, &place), "offset of a dumb buffer");
            s->dumb[i].memory = mmap(0, dumb.size, PROT_WRITE, MAP_SHARED, card, (off_t)place.offset);
            check(s->dumb[i].memory == MAP_FAILED ? -1 : 0, "mmap of a dumb buffer");
            s->dumb[i].fb = add_framebuffer(dumb.handle, frame->width, frame->height, dumb.pitch, 0x34325258 /* XR24 */);
        }
        s->size = 4ul * frame->width * frame->height; /* both have rows of 4 * width bytes: the lab's widths are multiples of 64 */
        memcpy(s->dumb[0].memory, frame->buffer->memory, s->size);
        s->back = 1;
        fb = s->dumb[0].fb;
    }
    struct drm_mode_crtc set = {.crtc_id = s->crtc, .fb_id = fb, .mode_valid = 1, .count_connectors = 1};
    set.set_connectors_ptr = (uintptr_t)&s->connector;
    for (uint32_t i = 0; i < s->mode_count && !set.mode.clock; i++)
        if (s->modes[i].hdisplay == frame->width && s->modes[i].vdisplay == frame->height) set.mode = s->modes[i];
    check(ioctl(card, DRM_IOCTL_MODE_SETCRTC, &set), "mode");
}

/* The copying thread of a screen. */
static void *copier(void *argument)
{
    struct screen *s = argument;
    pthread_mutex_lock(&s->lock);
    for (;;) {
        while (!s->job)
            pthread_cond_wait(&s->changed, &s->lock);
        const struct frame *frame = s->job;
        s->job = 0;
        pthread_mutex_unlock(&s->lock);
        memcpy(s->dumb[s->back].memory, frame->buffer->memory, s->size);
        commit(s, s->dumb[s->back].fb);
        s->back ^= 1;
        pthread_mutex_lock(&s->lock);
    }
    return 0;
}

/* Requests */

static void create(struct screen *s, const struct request *r)
{
    uint32_t count = (r->create.size + 4095) / 4096, *refs = directory(s->domid, r->create.directory, count);
    struct buffer *buffer = &buffers[buffer_count++];
    buffer->domid = s->domid;
    buffer->cookie = r->create.dbuf;
    buffer->pitch = r->create.width * 4;
    if (copying) {
        buffer->memory = map_grants(s->domid, refs, count, PROT_READ);
    } else {
        struct ioctl_gntdev_dmabuf_exp_from_refs *ask = calloc(1, sizeof *ask + count * sizeof *refs);
        ask->count = count;
        ask->domid = s->domid;
        memcpy(ask->refs, refs, count * sizeof *refs);
        check(ioctl(gntdev, IOCTL_GNTDEV_DMABUF_EXP_FROM_REFS, ask), "dma-buf");
        struct drm_prime_handle prime = {.fd = (int)ask->fd};
        check(ioctl(card, DRM_IOCTL_PRIME_FD_TO_HANDLE, &prime), "import");
        buffer->handle = prime.handle;
        free(ask);
    }
    free(refs);
}

static void attach(struct screen *s, const struct request *r)
{
    struct frame *frame = &frames[frame_count++];
    *frame = (struct frame){.cookie = r->attach.fb, .domid = s->domid, .width = r->attach.width, .height = r->attach.height};
    for (unsigned i = 0; i < buffer_count; i++)
        if (buffers[i].domid == s->domid && buffers[i].cookie == r->attach.dbuf) frame->buffer = &buffers[i];
    if (!copying)
        frame->fb = add_framebuffer(frame->buffer->handle, frame->width, frame->height, frame->buffer->pitch, r->attach.format);
}

static const struct frame *frame_of(const struct screen *s, uint64_t cookie)
{
    const struct frame *frame = frames;
    while (frame->cookie != cookie || frame->domid != s->domid)
        frame++;
    return frame;
}

static void flip(struct screen *s, const struct request *r)
{
    const struct frame *frame = frame_of(s, r->fb);
    s->pending = r->fb;
    if (!copying) {
        commit(s, frame->fb);
        return;
    }
    pthread_mutex_lock(&s->lock);
    s->job = frame;
    pthread_cond_signal(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

static void serve(struct screen *s, const struct request *r)
{
    switch (r->operation) {
    case PG_FLIP: flip(s, r); break;
    case DBUF_CREATE: create(s, r); break;
    case FB_ATTACH: attach(s, r); break;
    case SET_CONFIG: if (r->fb) show_first(s, frame_of(s, r->fb)); break;
    }
}

static uint32_t *word(uint8_t *page, unsigned offset) { return (uint32_t *)(page + offset); }

static void notify(uint32_t port)
{
    struct ioctl_evtchn_notify ask = {port};
    ioctl(evtchn, IOCTL_EVTCHN_NOTIFY, &ask);
}

/* Serve all requests of a ring: RING_COPY_REQUEST, RING_PUSH_RESPONSES_AND_CHECK_NOTIFY and RING_FINAL_CHECK_FOR_REQUESTS of xen/io/ring.h. */
static void drain(struct screen *s)
{
    do {
        while (s->served != __atomic_load_n(word(s->ring, REQ_PROD), __ATOMIC_ACQUIRE)) {
            uint8_t *slot = s->ring + SLOT + SLOT * (s->served % RING_SLOTS);
            struct request request;
            memcpy(&request, slot, SLOT);
            serve(s, &request);
            uint8_t response[SLOT] = {[2] = request.operation}; /* status 0 */
            memcpy(response, &request.id, sizeof request.id);
            memcpy(slot, response, SLOT);
            s->served++;
            __atomic_store_n(word(s->ring, RSP_PROD), s->served, __ATOMIC_RELEASE);
            __atomic_thread_fence(__ATOMIC_SEQ_CST);
            if (__atomic_load_n(word(s->ring, RSP_EVENT), __ATOMIC_RELAXED) == s->served) notify(s->ring_port);
        }
        __atomic_store_n(word(s->ring, REQ_EVENT), s->served + 1, __ATOMIC_RELAXED);
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
    } while (s->served != __atomic_load_n(word(s->ring, REQ_PROD), __ATOMIC_RELAXED));
}

/* Event channels and card events */

static void ports_fired(void)
{
    uint32_t ports[2 * SCREENS];
    ssize_t got = read(evtchn, ports, sizeof ports);
    for (ssize_t i = 0; i < got / 4; i++) {
        for (unsigned n = 0; n < screen_count; n++)
            if (screens[n].ring_port == ports[i]) drain(&screens[n]);
        if (write(evtchn, &ports[i], 4) != 4) perror("arm"); /* after the work */
    }
}

static void flips_shown(void)
{
    uint8_t data[1024];
    ssize_t got = read(card, data, sizeof data);
    for (ssize_t at = 0; at < got;) {
        struct drm_event_vblank event;
        memcpy(&event, data + at, sizeof event);
        at += event.base.length;
        if (event.base.type != DRM_EVENT_FLIP_COMPLETE) continue;
        struct screen *s = (struct screen *)(uintptr_t)event.user_data;
        uint8_t slot[SLOT] = {s->shown & 0xff, s->shown >> 8 & 0xff}; /* the type is XENDISPL_EVT_PG_FLIP, 0 */
        memcpy(slot + 8, &s->pending, sizeof s->pending);
        memcpy(s->events + SLOT + SLOT * (s->shown % EVENT_SLOTS), slot, SLOT);
        s->shown++;
        __atomic_store_n(word(s->events, IN_PROD), s->shown, __ATOMIC_RELEASE);
        notify(s->events_port);
    }
}

static void add_screen(const char *words)
{
    struct screen *s = &screens[screen_count++];
    uint32_t ring, events, ring_port, events_port;
    if (sscanf(words, "%u:%u:%u:%u:%u:%u", &s->connector, &s->domid, &ring, &events, &ring_port, &events_port) != 6) exit(2);
    find_pipe(s);
    s->ring = map_grants(s->domid, &ring, 1, PROT_READ | PROT_WRITE);
    s->events = map_grants(s->domid, &events, 1, PROT_READ | PROT_WRITE);
    struct ioctl_evtchn_bind_interdomain first = {s->domid, ring_port}, second = {s->domid, events_port};
    s->ring_port = (uint32_t)check(ioctl(evtchn, IOCTL_EVTCHN_BIND_INTERDOMAIN, &first), "ring port");
    s->events_port = (uint32_t)check(ioctl(evtchn, IOCTL_EVTCHN_BIND_INTERDOMAIN, &second), "events port");
    pthread_t thread;
    pthread_mutex_init(&s->lock, 0);
    pthread_cond_init(&s->changed, 0);
    if (copying && pthread_create(&thread, 0, copier, s)) exit(1);
}

int main(int count, char **words)
{
    if (count < 4) return 2;
    copying = !strcmp(words[2], "copy");
    card = check(open(words[1], O_RDWR | O_NONBLOCK | O_CLOEXEC), words[1]);
    gntdev = check(open("/dev/xen/gntdev", O_RDWR | O_CLOEXEC), "gntdev");
    evtchn = check(open("/dev/xen/evtchn", O_RDWR | O_NONBLOCK | O_CLOEXEC), "evtchn");
    struct drm_set_client_cap planes = {DRM_CLIENT_CAP_UNIVERSAL_PLANES, 1}, atomic = {DRM_CLIENT_CAP_ATOMIC, 1};
    check(ioctl(card, DRM_IOCTL_SET_CLIENT_CAP, &planes), "universal planes");
    check(ioctl(card, DRM_IOCTL_SET_CLIENT_CAP, &atomic), "atomic");
    for (int i = 3; i < count && screen_count < SCREENS; i++)
        add_screen(words[i]);
    int poll = check(epoll_create1(EPOLL_CLOEXEC), "epoll");
    struct epoll_event ports = {.events = EPOLLIN, .data.fd = evtchn}, flips = {.events = EPOLLIN, .data.fd = card};
    check(epoll_ctl(poll, EPOLL_CTL_ADD, evtchn, &ports), "epoll");
    check(epoll_ctl(poll, EPOLL_CTL_ADD, card, &flips), "epoll");
    puts("bare: ready");
    fflush(stdout);
    for (;;) {
        struct epoll_event ready[2];
        int got = epoll_wait(poll, ready, 2, -1);
        for (int i = 0; i < got; i++)
            if (ready[i].data.fd == evtchn) ports_fired(); else flips_shown();
    }
}
