/* Draws into the frame on the screen, without ever flipping, as a shadow framebuffer does: `draw 1024x768 SECONDS STEPS`.
 * First a pattern; then, every two seconds, a square more. tests/lab/test_drm.py computes the same picture. */
#include <drm/drm.h>
#include <drm/drm_mode.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

static int card;

static void ask(unsigned long number, void *argument, const char *what)
{
    if (ioctl(card, number, argument)) {
        perror(what);
        exit(1);
    }
}

int main(int count, char **words)
{
    unsigned width, height;
    if (count != 4 || sscanf(words[1], "%ux%u", &width, &height) != 2)
        return 2;
    card = open("/dev/dri/card0", O_RDWR);
    uint32_t crtcs[8], connectors[8];
    struct drm_mode_card_res all = {.count_crtcs = 8, .count_connectors = 8};
    all.crtc_id_ptr = (uintptr_t)crtcs;
    all.connector_id_ptr = (uintptr_t)connectors;
    ask(DRM_IOCTL_MODE_GETRESOURCES, &all, "resources");
    struct drm_mode_modeinfo modes[64];
    struct drm_mode_get_connector screen = {.connector_id = connectors[0]};
    ask(DRM_IOCTL_MODE_GETCONNECTOR, &screen, "connector");
    screen.modes_ptr = (uintptr_t)modes;
    screen.count_props = screen.count_encoders = 0;
    ask(DRM_IOCTL_MODE_GETCONNECTOR, &screen, "connector");

    struct drm_mode_create_dumb dumb = {.width = width, .height = height, .bpp = 32};
    ask(DRM_IOCTL_MODE_CREATE_DUMB, &dumb, "buffer");
    struct drm_mode_fb_cmd fb = {.width = width, .height = height, .bpp = 32, .depth = 24};
    fb.pitch = dumb.pitch;
    fb.handle = dumb.handle;
    ask(DRM_IOCTL_MODE_ADDFB, &fb, "framebuffer");
    struct drm_mode_map_dumb map = {.handle = dumb.handle};
    ask(DRM_IOCTL_MODE_MAP_DUMB, &map, "offset");
    volatile uint32_t *pixels = mmap(0, dumb.size, PROT_READ | PROT_WRITE, MAP_SHARED, card, map.offset);
    if (pixels == MAP_FAILED)
        return 1;
    for (unsigned y = 0; y < height; y++)
        for (unsigned x = 0; x < width; x++)
            pixels[y * dumb.pitch / 4 + x] = (x * 3 & 255) << 16 | (y * 5 & 255) << 8 | ((x ^ y) & 255);
    struct drm_mode_crtc set = {.crtc_id = crtcs[0], .fb_id = fb.fb_id, .mode_valid = 1, .count_connectors = 1};
    set.set_connectors_ptr = (uintptr_t)connectors;
    set.mode = modes[0];
    ask(DRM_IOCTL_MODE_SETCRTC, &set, "mode");
    puts("draw: step 0");
    fflush(stdout);
    for (int step = 1; step <= atoi(words[3]); step++) {
        sleep(2);
        for (unsigned y = 0; y < 60; y++)
            for (unsigned x = 0; x < 80; x++)
                pixels[(y + 50 * step) * dumb.pitch / 4 + x + 100 * step] = 0x00ff00 * step;
        printf("draw: step %d\n", step);
        fflush(stdout);
    }
    sleep(atoi(words[2]));
    return 0;
}
