/*
 * Prints what the guest's programs read from its input devices, until KEY_POWER goes down.
 *
 *     events print      each event: input: NAME: TYPE CODE VALUE
 *     events sum        when nothing has come for half a second: how many, and a hash of them all in their order
 *
 * Exit status 1: a device has gone.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/input.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define DEVICES 8

static struct device {
    int fd;
    char name[64];
    unsigned long events;
    uint32_t hash;
    int down;
    long x, y, wheel;
    unsigned lost;
} devices[DEVICES];
static struct pollfd polled[DEVICES];
static int count;

static void open_all(void)
{
    DIR *dir = opendir("/dev/input");
    struct dirent *entry;

    while (dir && (entry = readdir(dir)) && count < DEVICES) {
        char path[300];
        struct device *device = &devices[count];

        if (strncmp(entry->d_name, "event", 5))
            continue;
        snprintf(path, sizeof(path), "/dev/input/%s", entry->d_name);
        device->fd = open(path, O_RDONLY | O_NONBLOCK);
        if (device->fd < 0 || ioctl(device->fd, EVIOCGNAME(sizeof(device->name)), device->name) < 0)
            continue;
        device->hash = 2166136261u;
        polled[count].fd = device->fd;
        polled[count++].events = POLLIN;
        printf("device: %s\n", device->name);
    }
}

/* FNV-1a over type, code and value, a word each. Repetitions of keys do not count. */
static void add(struct device *device, const struct input_event *event)
{
    const uint32_t words[] = {event->type, event->code, (uint32_t)event->value};

    if (event->type == EV_KEY && event->value == 2)
        return;
    for (int i = 0; i < 3; i++)
        for (int shift = 0; shift < 32; shift += 8)
            device->hash = (device->hash ^ (words[i] >> shift & 0xff)) * 16777619u;
    device->events++;
    if (event->type == EV_KEY)
        device->down += event->value ? 1 : -1;
    if (event->type == EV_REL) {
        device->x += event->code == REL_X ? event->value : 0;
        device->y += event->code == REL_Y ? event->value : 0;
        device->wheel += event->code == REL_WHEEL ? event->value : 0;
    }
}

int main(int argc, char **argv)
{
    bool each = argc > 1 && !strcmp(argv[1], "print");
    bool news = false;

    setvbuf(stdout, NULL, _IOLBF, 0);
    while (access("/dev/input/event0", F_OK)) /* the driver starts when XenStore is there: perhaps after us */
        usleep(100000);
    usleep(500000);
    open_all();
    printf("events: ready\n");
    for (;;) {
        int ready = poll(polled, count, news ? 500 : -1);

        if (ready == 0) {
            for (int i = 0; i < count; i++)
                printf("sum: %s: events=%lu hash=%08x down=%d x=%ld y=%ld wheel=%ld lost=%u\n", devices[i].name,
                       devices[i].events, devices[i].hash, devices[i].down, devices[i].x, devices[i].y,
                       devices[i].wheel, devices[i].lost);
            news = false;
        }
        for (int i = 0; ready > 0 && i < count; i++) {
            struct input_event events[64];
            ssize_t size = read(devices[i].fd, events, sizeof(events));

            if (size < 0 && errno == ENODEV)
                return 1;
            for (int j = 0; j < size / (ssize_t)sizeof(*events); j++) {
                const struct input_event *event = &events[j];

                if (event->type == EV_SYN && event->code == SYN_DROPPED)
                    devices[i].lost++;
                if (event->type != EV_SYN) {
                    add(&devices[i], event);
                    news = !each;
                }
                if (each && (event->type != EV_SYN || event->code == SYN_REPORT))
                    printf("input: %s: %u %u %d\n", devices[i].name, event->type, event->code, event->value);
                if (event->type == EV_KEY && event->code == KEY_POWER && event->value)
                    return 0;
            }
        }
    }
}
