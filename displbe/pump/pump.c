/* The steady page flip, compiled: a request read and answered, a frame committed, its event written, all without the interpreter.
 *
 * The pump owns a connector between pump_give and pump_take. It serves one kind of request, a flip to a known framebuffer while no other
 * is under way, and one kind of event. Whatever else it meets it hands to Python before it has changed anything: display/requests.py,
 * events.py and sinks/flip.py are the specification, and serve the same flip in the same way.
 *
 * The guest can write everything in the two shared pages at any time. So they are read by volatile accesses, a slot is read once, indices
 * are private, and nothing that was read from a page becomes an address or a count of a loop. tests/proof proves that with a model checker.
 */
#define _GNU_SOURCE
#include "pump.h"

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <semaphore.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the rings of displif.h are read as little-endian words"
#endif

enum {
	CONNECTORS = 64, WATCHES = 32, PORTS = 64, EVENTS = 16, QUEUE = 512, ROOM = QUEUE - PORTS - CONNECTORS - 1,
	SLOT = 64, HEADER = 64, REQUEST_SLOTS = 32, EVENT_SLOTS = 63,
	/* struct sring (xen/include/public/io/ring.h) */
	REQ_PROD = 0, REQ_EVENT = 4, RSP_PROD = 8, RSP_EVENT = 12,
	/* struct xendispl_event_page (displif.h) */
	IN_CONS = 0, IN_PROD = 4,
	PG_FLIP = 0x15,
	TRACED = 4096, RECORD = 88, TIMES = 8192, BUCKETS = 16,
	/* drm_mode.h and drm.h: NONBLOCK | PAGE_FLIP_EVENT; the event; its size */
	FLIP_FLAGS = 0x201, FLIP_COMPLETE = 2, DRM_EVENT = 8, FLIP_EVENT = 32,
	/* Of a connector, what pump_peek reports */
	REPORTED = offsetof(struct pump_connector, state), WORDS = (offsetof(struct pump_connector, edition) - REPORTED) / 4,
};
#define IOCTL_EVTCHN_NOTIFY 0x00044504UL
#define IOCTL_MODE_ATOMIC 0xC03864BCUL

_Static_assert(sizeof(struct pump_atomic) == 56, "struct drm_mode_atomic");
_Static_assert(WORDS == 25, "the length of a report in pump.h");
_Static_assert((QUEUE & (QUEUE - 1)) == 0, "the indices of a queue wrap around");

struct watch { int fd, is_card; uint32_t turn; };
struct queue { struct pump_message items[QUEUE]; uint32_t written, taken; int fd; }; /* `written` is the pump's, `taken` Python's */

struct pump {
	struct pump_calls calls;
	pthread_mutex_t lock;       /* held while anything below but the queues, or a connector that is given, is used */
	struct pump_connector *connectors[CONNECTORS];
	struct watch watches[WATCHES];
	struct queue queues[2];     /* by enum pump_queue */
	uint32_t count, turn;
	int epoll, wake, stopping;
};

struct pump_copier {
	struct pump_calls calls;
	struct pump_copy copy;
	struct pump_copied copied;
	struct pump_framebuffer job;
	uint64_t serial;
	sem_t wake;
	int has_job, poked;
};

/* The system */

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static long real_read(int fd, void *data, unsigned long size)
{
	long got;

	while ((got = read(fd, data, size)) < 0)
		if (errno != EINTR)
			return -errno;
	return got;
}

static int real_rearm(int fd, uint32_t port)
{
	return write(fd, &port, sizeof port) < 0 ? -errno : 0;
}

static int real_notify(int fd, uint32_t port)
{
	return ioctl(fd, IOCTL_EVTCHN_NOTIFY, &port) < 0 ? -errno : 0;
}

static int real_commit(int fd, void *argument)
{
	while (ioctl(fd, IOCTL_MODE_ATOMIC, argument) < 0)
		if (errno != EINTR)
			return -errno;
	return 0;
}

static const struct pump_calls REAL = { real_read, real_rearm, real_notify, real_commit };

/* The shared pages */

static uint32_t load(const volatile uint8_t *page, uint32_t offset)
{
	return __atomic_load_n((const volatile uint32_t *)(page + offset), __ATOMIC_ACQUIRE);
}

static void store(volatile uint8_t *page, uint32_t offset, uint32_t value)
{
	__atomic_store_n((volatile uint32_t *)(page + offset), value, __ATOMIC_RELEASE);
}

/* Copy a slot to private memory, each of its words once. */
static void read_slot(const volatile uint8_t *page, uint32_t index, uint64_t slot[SLOT / 8])
{
	const volatile uint64_t *words = (const volatile uint64_t *)(page + HEADER + index * SLOT);

	for (int i = 0; i < SLOT / 8; i++)
		slot[i] = words[i];
}

static void write_slot(volatile uint8_t *page, uint32_t index, const uint64_t slot[SLOT / 8])
{
	volatile uint64_t *words = (volatile uint64_t *)(page + HEADER + index * SLOT);

	for (int i = 0; i < SLOT / 8; i++)
		words[i] = slot[i];
}

/* Return whether exactly one request waits and all others are answered. Everything else, possible or not, is for Python. */
static int one_waits(const struct pump_connector *c)
{
	return load(c->ring, REQ_PROD) == c->req_cons + 1 && c->rsp_prod == c->req_cons;
}

/* RING_PUSH_RESPONSES_AND_CHECK_NOTIFY for the one request. Return whether the guest wants a notification. */
static int respond(struct pump_connector *c, const uint64_t response[SLOT / 8])
{
	write_slot(c->ring, c->rsp_prod & (REQUEST_SLOTS - 1), response);
	store(c->ring, RSP_PROD, ++c->rsp_prod);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return load(c->ring, RSP_EVENT) == c->rsp_prod;
}

/* RING_FINAL_CHECK_FOR_REQUESTS: return whether a request has come meanwhile. */
static int final_check(struct pump_connector *c)
{
	store(c->ring, REQ_EVENT, c->req_cons + 1);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return load(c->ring, REQ_PROD) != c->req_cons;
}

/* Return whether there is room for an event. An impossible index of the guest looks like a full page, and is for Python. */
static int has_room(const struct pump_connector *c)
{
	return c->in_prod - load(c->events, IN_CONS) < EVENT_SLOTS;
}

static void push_event(struct pump_connector *c)
{
	uint64_t event[SLOT / 8] = { c->next_id & 0xFFFF, c->token };  /* XENDISPL_EVT_PG_FLIP is 0 */

	write_slot(c->events, c->in_prod % EVENT_SLOTS, event);
	store(c->events, IN_PROD, ++c->in_prod);
	c->next_id++;
}

/* A flip */

static const struct pump_framebuffer *find(const struct pump_connector *c, uint64_t cookie)
{
	for (uint32_t i = 0; i < c->framebuffer_count; i++)
		if (c->framebuffers[i].cookie == cookie)
			return &c->framebuffers[i];
	return 0;
}

static int has_token(const struct pump_bucket *b, double t)
{
	double empty_at;

	__atomic_load(&b->empty_at, &empty_at, __ATOMIC_RELAXED);
	return b->burst >= 1 && (t - empty_at) * b->rate >= 1;
}

/* Take tokens, even if there are too few. Return when there are none any more. Relaxed: nothing else depends on their number. */
static double take_tokens(struct pump_bucket *b, double t, double amount)
{
	double full = t - b->burst / b->rate, old, next;

	__atomic_load(&b->empty_at, &old, __ATOMIC_RELAXED);
	do
		next = (old > full ? old : full) + amount / b->rate;
	while (!__atomic_compare_exchange(&b->empty_at, &old, &next, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
	return next;
}

static void trace(struct pump_connector *c, const uint64_t slot[SLOT / 8], double t)
{
	uint8_t *record = c->trace + c->traced++ % TRACED * RECORD;
	double answered = now();

	memcpy(record, &t, 8);
	memcpy(record + 8, &answered, 8);
	memset(record + 16, 0, 8);  /* status and size of the EDID */
	memcpy(record + 24, slot, SLOT);
}

/* Report to pump_peek what the connector's owner has changed. There are two reports, so that the last one can be read while the next one is
 * written: a reader that sees a word of the next but one also sees, by release and acquire, that its writing has begun.
 */
static void publish(struct pump_connector *c)
{
	uint32_t words[WORDS], edition = c->edition;

	memcpy(words, (const uint8_t *)c + REPORTED, sizeof words);
	__atomic_store_n(&c->edition, edition + 1, __ATOMIC_RELEASE);
	for (int i = 0; i < WORDS; i++)
		__atomic_store_n(&c->reports[(edition / 2 + 1) & 1][i], words[i], __ATOMIC_RELEASE);
	__atomic_store_n(&c->edition, edition + 2, __ATOMIC_RELEASE);
}

static int copier_put(struct pump_copier *k, const struct pump_framebuffer *fb, uint64_t serial);

/* Show a framebuffer at the next refresh. Return 0 if the card or the copying thread does not accept it; nothing has changed then. */
static int show(struct pump *p, struct pump_connector *c, const struct pump_framebuffer *fb)
{
	if (c->copier)
		return copier_put(c->copier, fb, c->serial + 1);
	*c->fb_value = fb->fb;
	c->atomic->flags = FLIP_FLAGS;
	c->atomic->user_data = c->serial + 1;
	return p->calls.commit(c->card, c->atomic) == 0;
}

/* Serve the next request if it is a steady flip. Return 0 if it is for Python. */
static int serve(struct pump *p, struct pump_connector *c)
{
	const struct pump_framebuffer *fb;
	uint64_t slot[SLOT / 8];
	double t;

	if (c->state != PUMP_IDLE || !one_waits(c))
		return 0;
	read_slot(c->ring, c->req_cons & (REQUEST_SLOTS - 1), slot);
	fb = find(c, slot[1]);
	if ((slot[0] >> 16 & 0xFF) != PG_FLIP || !fb)
		return 0;
	t = now();
	if (!has_token(c->bucket, t) || !show(p, c, fb))
		return 0;
	take_tokens(c->bucket, t, 1);
	c->req_cons++;
	c->serial++;
	c->flips++;
	c->token = c->latest = fb->cookie;
	c->begun = t;
	c->told = 0;
	c->state = PUMP_PENDING;
	trace(c, slot, t);
	uint64_t response[SLOT / 8] = { slot[0] & 0xFFFFFF };  /* id and operation; status 0 */
	int wanted = respond(c, response);

	publish(c);
	if (wanted)
		p->calls.notify(c->evtchn, c->port);
	return 1;
}

/* Serve a notification. Return 0 if the port is for Python; it is masked then. Each turn of the loop needs another event of the card. */
int pump_request(struct pump *p, struct pump_connector *c)
{
	if (!serve(p, c) || final_check(c))
		return 0;
	p->calls.rearm(c->evtchn, c->port);
	return 1;
}

/* The frame of the flip under way is on the screen: write its event. Return 0 if that is for Python. */
int pump_shown(struct pump *p, struct pump_connector *c)
{
	double t, took, quarters;
	int bucket = 0;

	if (c->state != PUMP_PENDING || !has_room(c))
		return 0;
	push_event(c);
	c->state = PUMP_IDLE;
	t = now();
	took = t - c->begun;
	c->shown_at[c->counted % TIMES] = t;
	c->took[c->counted++ % TIMES] = took;
	c->total += took;
	quarters = took * 4000;  /* of a millisecond */
	for (double limit = 1; quarters >= limit && bucket < BUCKETS - 1; limit *= 2)
		bucket++;
	c->buckets[bucket]++;
	c->shown++;
	publish(c);
	p->calls.notify(c->evtchn, c->event_port);
	return 1;
}

/* What is handed to Python */

static void signal_fd(int fd)
{
	uint64_t one = 1;

	if (write(fd, &one, sizeof one) < 0)
		return;  /* EAGAIN: it is readable anyway */
}

static void clear_fd(int fd)
{
	uint64_t count;

	if (read(fd, &count, sizeof count) < 0)
		return;  /* EAGAIN: it was clear */
}

static void hand(struct pump *p, enum pump_queue queue, struct pump_message message)
{
	struct queue *q = &p->queues[queue];

	q->items[q->written % QUEUE] = message;
	__atomic_store_n(&q->written, q->written + 1, __ATOMIC_RELEASE);
	signal_fd(q->fd);
}

static uint32_t queued(const struct queue *q)
{
	return q->written - __atomic_load_n(&q->taken, __ATOMIC_ACQUIRE);
}

/* Wait until everything that one file can bring has room. Python is far behind if this ever waits, so nothing wakes it: it looks again. */
static void wait_for_room(struct pump *p)
{
	while (!p->stopping && (queued(&p->queues[0]) > ROOM || queued(&p->queues[1]) > ROOM)) {
		pthread_mutex_unlock(&p->lock);
		usleep(1000);
		pthread_mutex_lock(&p->lock);
	}
}

/* Files */

static void fail(struct pump *p, struct watch *w, enum pump_queue queue, int error)
{
	struct pump_message message = { .kind = PUMP_FAILED, .fd = w->fd, .error = error };

	epoll_ctl(p->epoll, EPOLL_CTL_DEL, w->fd, 0);
	w->fd = -1;
	hand(p, queue, message);  /* Python may watch the file again at once */
}

/* Return the bytes read; 0: none for now. A file that has nothing to read but an error or its end would wake the thread for ever. */
static long read_file(struct pump *p, const struct watch *w, uint32_t events, void *data, unsigned long size)
{
	long got = p->calls.read(w->fd, data, size);

	if (got == -EAGAIN && !(events & (EPOLLERR | EPOLLHUP)))
		return 0;
	return got == 0 ? -ENODEV : got == -EAGAIN ? -EIO : got;
}

static void serve_ports(struct pump *p, struct watch *w, uint32_t events)
{
	uint32_t ports[PORTS];
	long got = read_file(p, w, events, ports, sizeof ports);

	if (got < 0)
		fail(p, w, PUMP_PORTS, (int)-got);
	for (long i = 0; i < got / (long)sizeof *ports && i < PORTS; i++) {
		struct pump_connector *found = 0;

		for (uint32_t k = 0; k < p->count && !found; k++)
			if (p->connectors[k]->port == ports[i] && p->connectors[k]->evtchn == w->fd)
				found = p->connectors[k];
		if (!found || !pump_request(p, found))
			hand(p, PUMP_PORTS, (struct pump_message){ .kind = PUMP_PORT, .fd = w->fd, .value = ports[i] });
	}
}

static void serve_flip_event(struct pump *p, int card, uint64_t serial)
{
	for (uint32_t k = 0; k < p->count; k++) {
		struct pump_connector *c = p->connectors[k];

		if (c->card == card && c->serial == serial && pump_shown(p, c))
			return;
	}
	hand(p, PUMP_REST, (struct pump_message){ .kind = PUMP_SHOWN, .fd = card, .value = serial });
}

static void serve_card(struct pump *p, struct watch *w, uint32_t events)
{
	uint8_t data[PORTS * FLIP_EVENT];
	long got = read_file(p, w, events, data, sizeof data);
	int error = got < 0 ? (int)-got : 0;

	for (long at = 0; got - at >= DRM_EVENT;) {
		uint32_t kind, size;
		uint64_t serial;

		memcpy(&kind, data + at, 4);
		memcpy(&size, data + at + 4, 4);
		if (size < DRM_EVENT || size > got - at) {
			error = EIO;
			break;
		}
		if (kind == FLIP_COMPLETE && size >= FLIP_EVENT) {
			memcpy(&serial, data + at + DRM_EVENT, 8);
			serve_flip_event(p, w->fd, serial);
		}
		at += size;
	}
	if (error)
		fail(p, w, PUMP_REST, error);
}

/* Tell Python of flips that are late and screens that stand still, once for each flip. Return the milliseconds to the next of them. */
static int serve_times(struct pump *p)
{
	double t = now(), next = INFINITY;

	for (uint32_t k = 0; k < p->count; k++) {
		struct pump_connector *c = p->connectors[k];
		double limit = c->state == PUMP_PENDING ? c->late : c->still;

		if (c->told || limit <= 0)
			continue;
		if (t >= c->begun + limit) {
			c->told = 1;
			hand(p, PUMP_REST, (struct pump_message){
				.kind = c->state == PUMP_PENDING ? PUMP_LATE : PUMP_STILL, .fd = c->card, .value = c->number });
		} else if (c->begun + limit < next) {
			next = c->begun + limit;
		}
	}
	return next - t > 86400 ? -1 : (int)((next - t) * 1000) + 1;
}

static void serve_file(struct pump *p, const struct epoll_event *event)
{
	uint32_t slot = (uint32_t)event->data.u64, turn = (uint32_t)(event->data.u64 >> 32);
	struct watch *w = &p->watches[slot % WATCHES];

	if (slot == WATCHES) {
		clear_fd(p->wake);
		return;
	}
	wait_for_room(p);
	if (p->stopping || w->fd < 0 || w->turn != turn)  /* there may be no room; it has been unwatched meanwhile */
		return;
	if (w->is_card)
		serve_card(p, w, event->events);
	else
		serve_ports(p, w, event->events);
}

void pump_run(struct pump *p)
{
	struct epoll_event events[EVENTS];

	pthread_mutex_lock(&p->lock);
	for (wait_for_room(p); !p->stopping; wait_for_room(p)) {
		int wait = serve_times(p);

		pthread_mutex_unlock(&p->lock);
		int got = epoll_wait(p->epoll, events, EVENTS, wait);

		pthread_mutex_lock(&p->lock);
		for (int i = 0; i < got && !p->stopping; i++)
			serve_file(p, &events[i]);
	}
	pthread_mutex_unlock(&p->lock);
}

/* Python's side */

const char *pump_version(void)
{
	return PUMP_VERSION;
}

static int watch_slot(struct pump *p, int fd, uint64_t data)
{
	struct epoll_event event = { .events = EPOLLIN, .data.u64 = data };

	return epoll_ctl(p->epoll, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

/* A thread of Python's that holds the lock runs as soon as the pump's waits for it, whatever else wants the processor. */
static void init_lock(pthread_mutex_t *lock)
{
	pthread_mutexattr_t inherit;

	pthread_mutexattr_init(&inherit);
	pthread_mutexattr_setprotocol(&inherit, PTHREAD_PRIO_INHERIT);
	pthread_mutex_init(lock, &inherit);
	pthread_mutexattr_destroy(&inherit);
}

struct pump *pump_new(const struct pump_calls *calls)
{
	struct pump *p = calloc(1, sizeof *p);

	if (!p)
		return 0;
	p->calls = calls ? *calls : REAL;
	init_lock(&p->lock);
	for (int i = 0; i < WATCHES; i++)
		p->watches[i].fd = -1;
	p->epoll = epoll_create1(EPOLL_CLOEXEC);
	p->wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	p->queues[0].fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	p->queues[1].fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (p->epoll < 0 || p->wake < 0 || p->queues[0].fd < 0 || p->queues[1].fd < 0 || watch_slot(p, p->wake, WATCHES) < 0) {
		int error = errno;

		pump_free(p);
		errno = error;
		return 0;
	}
	return p;
}

void pump_free(struct pump *p)
{
	int files[] = { p->epoll, p->wake, p->queues[0].fd, p->queues[1].fd };

	for (int i = 0; i < 4; i++)
		if (files[i] >= 0)
			close(files[i]);
	pthread_mutex_destroy(&p->lock);
	free(p);
}

void pump_stop(struct pump *p)
{
	pthread_mutex_lock(&p->lock);
	p->stopping = 1;
	pthread_mutex_unlock(&p->lock);
	signal_fd(p->wake);
}

int pump_fd(const struct pump *p, enum pump_queue queue)
{
	return p->queues[queue].fd;
}

int pump_messages(struct pump *p, enum pump_queue queue, struct pump_message *messages, int room)
{
	struct queue *q = &p->queues[queue];
	uint32_t written, taken = q->taken;
	int count = 0;

	clear_fd(q->fd);
	written = __atomic_load_n(&q->written, __ATOMIC_ACQUIRE);
	while (count < room && taken != written)
		messages[count++] = q->items[taken++ % QUEUE];
	__atomic_store_n(&q->taken, taken, __ATOMIC_RELEASE);
	if (taken != written)
		signal_fd(q->fd);
	return count;
}

int pump_watch(struct pump *p, int fd, int is_card)
{
	struct watch *w = 0;
	uint64_t data = 0;
	int error;

	pthread_mutex_lock(&p->lock);
	for (uint32_t i = 0; i < WATCHES && !w; i++)
		if (p->watches[i].fd < 0) {
			w = &p->watches[i];
			*w = (struct watch){ fd, is_card, ++p->turn };
			data = (uint64_t)w->turn << 32 | i;
		}
	pthread_mutex_unlock(&p->lock);
	error = w ? watch_slot(p, fd, data) : -ENOSPC;
	if (w && error) {
		pthread_mutex_lock(&p->lock);
		w->fd = -1;
		pthread_mutex_unlock(&p->lock);
	}
	return error;
}

void pump_unwatch(struct pump *p, int fd)
{
	int found = 0;

	pthread_mutex_lock(&p->lock);
	for (uint32_t i = 0; i < WATCHES; i++)
		if (p->watches[i].fd == fd) {
			p->watches[i].fd = -1;
			found = 1;
		}
	pthread_mutex_unlock(&p->lock);
	if (found)  /* an event that epoll still tells of finds no file */
		epoll_ctl(p->epoll, EPOLL_CTL_DEL, fd, 0);
}

int pump_give(struct pump *p, struct pump_connector *c)
{
	int room;

	publish(c);
	pthread_mutex_lock(&p->lock);
	room = p->count < CONNECTORS;
	if (room)
		p->connectors[p->count++] = c;
	pthread_mutex_unlock(&p->lock);
	if (room)
		signal_fd(p->wake);  /* it has a time of its own to be told */
	return room;
}

void pump_take(struct pump *p, struct pump_connector *c)
{
	pthread_mutex_lock(&p->lock);
	for (uint32_t i = p->count; i-- > 0;)
		if (p->connectors[i] == c)
			p->connectors[i] = p->connectors[--p->count];
	pthread_mutex_unlock(&p->lock);
}

/* It begins again only if the pump has begun a second step meanwhile. */
void pump_peek(const struct pump_connector *c, struct pump_connector *copy)
{
	uint32_t words[WORDS], edition;

	do {
		edition = __atomic_load_n(&c->edition, __ATOMIC_ACQUIRE);
		for (int i = 0; i < WORDS; i++)
			words[i] = __atomic_load_n(&c->reports[edition / 2 & 1][i], __ATOMIC_ACQUIRE);
	} while (__atomic_load_n(&c->edition, __ATOMIC_ACQUIRE) - (edition & ~1U) > 2);
	memcpy((uint8_t *)copy + REPORTED, words, sizeof words);
}

double pump_take_tokens(struct pump_bucket *bucket, double amount)
{
	double t = now(), empty_at = take_tokens(bucket, t, amount);

	return empty_at > t ? empty_at - t : 0;
}

/* Copy mode. The pump hands a job to the copying thread, which owns all of the copier until it has done it; Python sets what is copied while
 * it rests. `has_job` passes it on, by release and acquire. So none of them waits for a lock that another one holds.
 */

struct pump_copier *pump_copier_new(const struct pump_calls *calls)
{
	struct pump_copier *k = calloc(1, sizeof *k);

	if (!k)
		return 0;
	k->calls = calls ? *calls : REAL;
	sem_init(&k->wake, 0, 0);
	return k;
}

void pump_copier_free(struct pump_copier *k)
{
	sem_destroy(&k->wake);
	free(k);
}

void pump_copier_set(struct pump_copier *k, const struct pump_copy *copy)
{
	k->copy = *copy;
}

void pump_copier_swap(struct pump_copier *k)
{
	k->copy.back ^= 1;
}

void pump_copier_poke(struct pump_copier *k)
{
	__atomic_store_n(&k->poked, 1, __ATOMIC_RELEASE);
	sem_post(&k->wake);
}

int pump_copier_resting(struct pump_copier *k)
{
	return !__atomic_load_n(&k->has_job, __ATOMIC_ACQUIRE);
}

static int copier_put(struct pump_copier *k, const struct pump_framebuffer *fb, uint64_t serial)
{
	if (!pump_copier_resting(k))
		return 0;
	k->job = *fb;
	k->serial = serial;
	__atomic_store_n(&k->has_job, 1, __ATOMIC_RELEASE);
	sem_post(&k->wake);
	return 1;
}

/* Copy a frame, and commit it as soon as the card is ready. Return an error number. */
static int show_copy(struct pump_copier *k, const struct pump_framebuffer *job, uint64_t serial, double *seconds)
{
	struct pump_copy *copy = &k->copy;
	uint8_t *to = copy->target[copy->back & 1];
	double begun = now(), until;
	int error;

	if (copy->stride == copy->row && copy->target_stride == copy->row)
		memcpy(to, job->pixels, copy->row * copy->rows);
	else
		for (uint64_t y = 0; y < copy->rows; y++)
			memcpy(to + y * copy->target_stride, job->pixels + y * copy->stride, copy->row);
	until = now();
	*seconds = until - begun;
	until += copy->late;
	*copy->fb_value = copy->fb[copy->back & 1];
	copy->atomic->flags = FLIP_FLAGS;
	copy->atomic->user_data = serial;
	while ((error = -k->calls.commit(copy->card, copy->atomic)) == EBUSY && now() < until)
		usleep(1000);
	return error;
}

/* Do the job and add it to the report. Return its error number. */
static int do_job(struct pump_copier *k)
{
	double seconds = 0;
	int error;

	k->copied.flipped_at = now();
	error = show_copy(k, &k->job, k->serial, &seconds);
	k->copied.frames++;
	k->copied.seconds += seconds;
	k->copied.cookie = k->job.cookie;
	if (error) {
		k->copied.error = error;
		k->copied.serial = k->serial;
	} else {
		k->copy.back ^= 1;
	}
	k->copied.back = k->copy.back;
	__atomic_store_n(&k->has_job, 0, __ATOMIC_RELEASE);
	return error;
}

static struct timespec after(double seconds)
{
	double t = now() + (seconds < 86400 ? seconds : 86400);
	struct timespec at = { (time_t)t, (long)((t - (double)(time_t)t) * 1e9) };

	return at;
}

int pump_copier_wait(struct pump_copier *k, double seconds, struct pump_copied *copied)
{
	struct timespec at;
	int result = -1;

	while (result < 0) {
		if (!pump_copier_resting(k)) {
			if (do_job(k))
				result = PUMP_COPIER_FAILED;
		} else if (__atomic_exchange_n(&k->poked, 0, __ATOMIC_ACQUIRE)) {
			result = PUMP_COPIER_POKED;
		} else if (seconds < 0) {
			sem_wait(&k->wake);
		} else {
			at = after(seconds);
			if (sem_clockwait(&k->wake, CLOCK_MONOTONIC, &at) < 0 && errno == ETIMEDOUT)
				result = PUMP_COPIER_TIMEOUT;
		}
	}
	*copied = k->copied;
	memset(&k->copied, 0, sizeof k->copied);
	return result;
}
