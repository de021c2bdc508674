/* Flips as long as it lives, on whatever card there is, as a compositor does: `survive 1024x768`.
 * A card that goes is closed at once, and its successor is used as soon as it is there. Both buffers show draw.c's pattern. */
#include <drm/drm.h>
#include <drm/drm_mode.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

static unsigned width, height;

static int open_card(void)
{
    char path[32];
    for (int number = 0; number < 8; number++) {
        snprintf(path, sizeof path, "/dev/dri/card%d", number);
        int card = open(path, O_RDWR);
        if (card >= 0)
            return card;
    }
    return -1;
}

/* A framebuffer with the pattern, or 0. */
static uint32_t framebuffer(int card)
{
    struct drm_mode_create_dumb dumb = {.width = width, .height = height, .bpp = 32};
    if (ioctl(card, DRM_IOCTL_MODE_CREATE_DUMB, &dumb))
        return 0;
    struct drm_mode_fb_cmd fb = {.width = width, .height = height, .bpp = 32, .depth = 24};
    fb.pitch = dumb.pitch;
    fb.handle = dumb.handle;
    struct drm_mode_map_dumb map = {.handle = dumb.handle};
    if (ioctl(card, DRM_IOCTL_MODE_ADDFB, &fb) || ioctl(card, DRM_IOCTL_MODE_MAP_DUMB, &map))
        return 0;
    uint32_t *pixels = mmap(0, dumb.size, PROT_READ | PROT_WRITE, MAP_SHARED, card, map.offset);
    if (pixels == MAP_FAILED)
        return 0;
    for (unsigned y = 0; y < height; y++)
        for (unsigned x = 0; x < width; x++)
            pixels[y * dumb.pitch / 4 + x] = (x * 3 & 255) << 16 | (y * 5 & 255) << 8 | ((x ^ y) & 255);
    munmap(pixels, dumb.size);
    return fb.fb_id;
}

/* Until something fails. */
static void flip(int card, int turn)
{
    uint32_t crtcs[8], connectors[8], fbs[2];
    struct drm_mode_card_res all = {.count_crtcs = 8, .count_connectors = 8};
    all.crtc_id_ptr = (uintptr_t)crtcs;
    all.connector_id_ptr = (uintptr_t)connectors;
    if (ioctl(card, DRM_IOCTL_MODE_GETRESOURCES, &all) || !all.count_connectors)
        return;
    struct drm_mode_modeinfo modes[64];
    struct drm_mode_get_connector screen = {.connector_id = connectors[0]};
    if (ioctl(card, DRM_IOCTL_MODE_GETCONNECTOR, &screen))
        return;
    screen.modes_ptr = (uintptr_t)modes;
    screen.count_props = screen.count_encoders = 0;
    if (ioctl(card, DRM_IOCTL_MODE_GETCONNECTOR, &screen) || !screen.count_modes)
        return;
    struct drm_mode_crtc set = {.crtc_id = crtcs[0], .mode_valid = 1, .count_connectors = 1, .mode = modes[0]};
    set.set_connectors_ptr = (uintptr_t)connectors;
    if (!(fbs[0] = framebuffer(card)) || !(fbs[1] = framebuffer(card)))
        return;
    set.fb_id = fbs[0];
    if (ioctl(card, DRM_IOCTL_MODE_SETCRTC, &set))
        return;
    printf("survive: card %d\n", turn);
    fflush(stdout);
    for (unsigned frame = 1;; frame++) {
        struct drm_mode_crtc_page_flip next = {.crtc_id = crtcs[0], .fb_id = fbs[frame & 1], .flags = DRM_MODE_PAGE_FLIP_EVENT};
        struct pollfd events = {.fd = card, .events = POLLIN};
        char event[256];
        if (ioctl(card, DRM_IOCTL_MODE_PAGE_FLIP, &next) || poll(&events, 1, 4000) != 1 || !(events.revents & POLLIN) ||
            read(card, event, sizeof event) <= 0)
            return;
    }
}

int main(int count, char **words)
{
    if (count != 2 || sscanf(words[1], "%ux%u", &width, &height) != 2)
        return 2;
    for (int turn = 1;; usleep(20000)) {
        int card = open_card();
        if (card < 0)
            continue;
        flip(card, turn++);
        close(card);
    }
}
