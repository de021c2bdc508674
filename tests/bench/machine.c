/* A simulated machine for the pump, without the interpreter: event channels of displbe.sim.hypervisor, and a card that refreshes by itself.
 * And the yardstick: a backend that makes the same calls for each flip, and nothing else. tests/bench/pump.py is its user. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

enum { DOMAINS = 5, PORTS = 1024, PLANE = 30, SCREENS = 8, FLIP_COMPLETE = 2 };

struct event { uint32_t type, length; uint64_t user_data; uint32_t sec, usec, sequence, crtc; };
struct domain { int upcall; uint8_t *pending, *masked; };           /* a flag for each port */
struct peer { struct domain *domain; uint32_t port; };
struct atomic { uint32_t flags, count; uint64_t objects, counts, properties, values, reserved, user_data; };
struct bare { struct domain *domain; uint8_t *ring, *events; uint32_t ring_port, events_port; int card, screen; };

static struct domain domains[DOMAINS];
static struct peer peers[DOMAINS][PORTS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t pending[SCREENS];                                   /* user data of the flip under way */
static int ends[SCREENS], period_us, stopping;
double *refreshed;                                                  /* when each screen last showed a new frame; shared with the guests */

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

void machine_domain(int number, int upcall, uint8_t *pending_flags, uint8_t *masked_flags)
{
	domains[number] = (struct domain){ upcall, pending_flags, masked_flags };
}

void machine_peer(int number, uint32_t port, int other, uint32_t other_port)
{
	peers[number][port] = (struct peer){ &domains[other], other_port };
}

static void upcall(struct domain *d)
{
	uint64_t one = 1;
	if (write(d->upcall, &one, sizeof one) < 0)
		return;
}

static void raise_port(struct peer *p)
{
	if (!p->domain)
		return;
	p->domain->pending[p->port] = 1;
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (!p->domain->masked[p->port])
		upcall(p->domain);
}

static long fired(struct domain *d, uint32_t *ports, unsigned long room)
{
	uint64_t count;
	long found = 0;
	if (read(d->upcall, &count, sizeof count) < 0)
		return -errno;
	for (uint32_t port = 0; port < PORTS; port++) {
		if (!d->pending[port] || d->masked[port])
			continue;
		if ((unsigned long)found == room) {
			upcall(d);
			break;
		}
		d->masked[port] = 1;
		d->pending[port] = 0;
		ports[found++] = port;
	}
	return found ? 4 * found : -EAGAIN;
}

static void unmask(struct domain *d, uint32_t port)
{
	d->masked[port] = 0;
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (d->pending[port])
		upcall(d);
}

/* struct pump_calls, for domain 0 */

static int own_fd;

void machine_own(int fd)
{
	own_fd = fd;
}

long machine_read(int fd, void *data, unsigned long size)
{
	long got;
	if (fd == own_fd)
		return fired(&domains[0], data, size / 4);
	got = read(fd, data, size);
	return got < 0 ? -errno : got;
}

int machine_rearm(int fd, uint32_t port)
{
	(void)fd;
	unmask(&domains[0], port);
	return 0;
}

int machine_notify(int fd, uint32_t port)
{
	(void)fd;
	raise_port(&peers[0][port]);
	return 0;
}

static int flip(int screen, uint64_t user_data)
{
	int error = 0;
	pthread_mutex_lock(&lock);
	if (pending[screen])
		error = -EBUSY;
	else
		pending[screen] = user_data;
	pthread_mutex_unlock(&lock);
	return error;
}

int machine_commit(int fd, void *argument)
{
	const struct atomic *ask = argument;
	(void)fd;
	return flip((int)(*(uint32_t *)(uintptr_t)ask->objects - PLANE), ask->user_data);
}

/* The card */

static void *refresh(void *unused)
{
	double next = now();
	(void)unused;
	while (!__atomic_load_n(&stopping, __ATOMIC_RELAXED)) {
		next += period_us * 1e-6;
		struct timespec at = { (time_t)next, (long)((next - (double)(time_t)next) * 1e9) };
		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, 0);
		for (int i = 0; i < SCREENS; i++) {
			pthread_mutex_lock(&lock);
			struct event e = { FLIP_COMPLETE, sizeof e, pending[i], 0, 0, 0, (uint32_t)i };
			pending[i] = 0;
			pthread_mutex_unlock(&lock);
			if (!e.user_data)
				continue;
			refreshed[i] = now();
			if (write(ends[i], &e, sizeof e) < 0)
				return 0;
		}
	}
	return 0;
}

static pthread_t refresher;

int machine_start(int hertz, double *shared, const int *event_ends)
{
	period_us = 1000000 / hertz;
	refreshed = shared;
	memcpy(ends, event_ends, sizeof ends);
	return pthread_create(&refresher, 0, refresh, 0);
}

void machine_stop(void)
{
	__atomic_store_n(&stopping, 1, __ATOMIC_RELAXED);
	pthread_join(refresher, 0);
}

/* The yardstick */

static uint32_t *word(uint8_t *page, int offset)
{
	return (uint32_t *)(page + offset);
}

/* Serve one connector of domain `b->domain`, for ever. */
static void *serve(void *argument)
{
	struct bare b = *(struct bare *)argument;
	int number = (int)(b.domain - domains), poll = epoll_create1(0);
	struct epoll_event upcalls = { .events = EPOLLIN, .data.fd = b.domain->upcall }, card = { .events = EPOLLIN, .data.fd = b.card };
	uint32_t served = 0, shown = 0, ports[16];
	uint64_t cookie = 0;
	epoll_ctl(poll, EPOLL_CTL_ADD, b.domain->upcall, &upcalls);
	epoll_ctl(poll, EPOLL_CTL_ADD, b.card, &card);
	for (;;) {
		struct epoll_event ready;
		if (epoll_wait(poll, &ready, 1, -1) < 1)
			continue;
		if (ready.data.fd == b.card) {
			struct event e;
			uint64_t slot[8] = { shown & 0xFFFF, cookie };
			if (read(b.card, &e, sizeof e) < 0)
				continue;
			memcpy(b.events + 64 + shown % 63 * 64, slot, 64);
			__atomic_store_n(word(b.events, 4), ++shown, __ATOMIC_RELEASE);
			raise_port(&peers[number][b.events_port]);
			continue;
		}
		if (fired(b.domain, ports, 16) < 0)
			continue;
		do {
			while (served != __atomic_load_n(word(b.ring, 0), __ATOMIC_ACQUIRE)) {
				uint64_t slot[8], *at = (uint64_t *)(b.ring + 64 + served % 32 * 64);
				memcpy(slot, at, 64);
				cookie = slot[1];
				flip(b.screen, cookie);
				uint64_t response[8] = { slot[0] & 0xFFFFFF };
				memcpy(at, response, 64);
				__atomic_store_n(word(b.ring, 8), ++served, __ATOMIC_RELEASE);
				__atomic_thread_fence(__ATOMIC_SEQ_CST);
				if (*word(b.ring, 12) == served)
					raise_port(&peers[number][b.ring_port]);
			}
			*word(b.ring, 4) = served + 1;
			__atomic_thread_fence(__ATOMIC_SEQ_CST);
		} while (served != *word(b.ring, 0));
		unmask(b.domain, b.ring_port);
	}
	return 0;
}

int machine_bare(int number, uint8_t *ring, uint8_t *events, uint32_t ring_port, uint32_t events_port, int card, int screen)
{
	static struct bare b;
	pthread_t thread;
	b = (struct bare){ &domains[number], ring, events, ring_port, events_port, card, screen };
	return pthread_create(&thread, 0, serve, &b) || pthread_detach(thread);
}
