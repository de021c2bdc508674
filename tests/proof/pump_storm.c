/* A storm over the pump, for the sanitizers: guests that scribble over their pages and notify, a card that answers anything, and Python's
 * side, which takes, gives, watches and unwatches all the time. argv: seconds.
 *
 * It fails by itself when the pump touches a connector that it does not own, or serves nothing.
 */
#include PUMP_C

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>

enum { GUESTS = 4, FRAMEBUFFERS = 3, WIDTH = 64, HEIGHT = 8, PORT = 100 };

struct guest {
	uint8_t ring[4096], events[4096], *trace;
	double *shown_at, *took;
	uint64_t buckets[BUCKETS], fb_value, frames[FRAMEBUFFERS][WIDTH * HEIGHT / 8];
	struct pump_framebuffer framebuffers[FRAMEBUFFERS];
	struct pump_atomic atomic;
	struct pump_connector c;
};

static _Alignas(4096) struct guest guests[GUESTS];
static struct pump_bucket bucket = { 0, 1e9, 1e9 };
static struct pump *pump;
static struct pump_copier *copier;
static uint64_t back_buffers[2][WIDTH * HEIGHT / 8];
static int ports[2], events[2], other[2], over;
static uint32_t served, turns, given_copies, peeked;

static uint32_t next(uint32_t *seed)
{
	return *seed = *seed * 1664525 + 1013904223;
}

static int ended(void)
{
	return __atomic_load_n(&over, __ATOMIC_ACQUIRE);
}

static void fire(uint32_t port)
{
	if (write(ports[1], &port, sizeof port) < 0)
		return;  /* it has fired already */
}

static int storm_rearm(int fd, uint32_t port)
{
	(void)fd;
	(void)port;
	__atomic_fetch_add(&served, 1, __ATOMIC_RELAXED);
	return 0;
}

static int storm_notify(int fd, uint32_t port)
{
	return fd == ports[0] && port >= PORT ? 0 : -EINVAL;
}

static int storm_commit(int fd, void *argument)
{
	static __thread uint32_t seed;
	struct pump_atomic *atomic = argument;
	uint64_t event[4] = { FLIP_COMPLETE | (uint64_t)FLIP_EVENT << 32, atomic->user_data };
	uint32_t chance = next(&seed) >> 16;

	if (chance % 16 == 0)
		return (int[]){ -EBUSY, -EACCES, -EINVAL, -EAGAIN }[chance / 16 % 4];
	if (chance % 16 == 1)
		event[1] = chance;  /* of something else */
	if (chance % 1024 == 2)
		event[0] = chance;  /* a size that is none, or another kind of event */
	if (write(events[1], event, sizeof event) < 0)
		return chance & 32 ? 0 : -EBUSY;  /* its event is lost */
	return fd == events[0] ? 0 : -EINVAL;
}

static const struct pump_calls CALLS = { real_read, storm_rearm, storm_notify, storm_commit };

/* Another domain: its races with the pump are the point, and not reported. */
__attribute__((no_sanitize("thread"))) static void *guest_thread(void *nothing)
{
	uint32_t seed = 1;

	(void)nothing;
	while (!ended()) {
		uint32_t n = next(&seed) >> 8, which = n % GUESTS, word = n / GUESTS % 1024;
		struct guest *g = &guests[which];
		uint32_t *ring = (uint32_t *)g->ring, *page = (uint32_t *)g->events;

		if (n >> 20 & 7) {  /* a good flip, and all events read */
			uint32_t index = __atomic_load_n(&ring[RSP_PROD / 4], __ATOMIC_ACQUIRE);
			uint64_t *slot = (uint64_t *)(g->ring + HEADER + index % REQUEST_SLOTS * SLOT);

			__atomic_store_n(&slot[0], PG_FLIP << 16 | (n & 0xFFFF), __ATOMIC_RELAXED);
			__atomic_store_n(&slot[1], g->framebuffers[n % FRAMEBUFFERS].cookie, __ATOMIC_RELAXED);
			__atomic_store_n(&ring[REQ_PROD / 4], index + 1, __ATOMIC_RELEASE);
			__atomic_store_n(&page[IN_CONS / 4], __atomic_load_n(&page[IN_PROD / 4], __ATOMIC_ACQUIRE), __ATOMIC_RELEASE);
		} else if (n >> 23 & 1) {
			__atomic_store_n(&ring[word], next(&seed), __ATOMIC_RELAXED);
		} else {
			__atomic_store_n(&page[word], next(&seed), __ATOMIC_RELAXED);
		}
		fire(PORT + n / 64 % (GUESTS + 1));
	}
	return 0;
}

static void failed(const char *why)
{
	fprintf(stderr, "%s\n", why);
	abort();
}

/* Python's side */

static void *owner_thread(void *nothing)
{
	uint32_t seed = 2;
	struct pump_connector kept;
	struct pump_bucket alone = { 0, 1e9, 1e9 };

	(void)nothing;
	while (!ended()) {
		struct guest *g = &guests[next(&seed) >> 8 & (GUESTS - 1)];

		pump_take(pump, &g->c);
		kept = g->c;
		if (next(&seed) >> 16 & 1)
			sched_yield();
		if (memcmp(&kept, &g->c, sizeof kept))
			failed("the pump has touched a connector that was taken");
		g->c.bucket = &alone;
		for (int i = 0; i < 300; i++) {
			write_slot(g->ring, g->c.req_cons % REQUEST_SLOTS, (uint64_t[8]){ PG_FLIP << 16, g->framebuffers[i % 3].cookie });
			store(g->ring, REQ_PROD, g->c.req_cons + 1);
			store(g->events, IN_CONS, g->c.in_prod);
			turns += (uint32_t)(pump_request(pump, &g->c) + pump_shown(pump, &g->c));
		}
		g->c.bucket = &bucket;
		g->c.state = PUMP_IDLE;
		g->c.rsp_prod = g->c.req_cons;
		g->c.told = next(&seed) >> 16 & 1;
		store(g->ring, RSP_PROD, g->c.rsp_prod);
		if (!pump_give(pump, &g->c))
			failed("no room");
		pump_take_tokens(&bucket, 0.5);
		if (pump_watch(pump, other[0], next(&seed) >> 16 & 1) == 0)
			pump_unwatch(pump, other[0]);
	}
	return 0;
}

/* The counters of a report are of one moment: those that a flip counts have the same distance from each other, those of an event, too. */
static void *peek_thread(void *nothing)
{
	struct pump_connector now, last[GUESTS] = { 0 };

	(void)nothing;
	for (uint32_t which = 0; !ended(); which = (which + 1) % GUESTS) {
		pump_peek(&guests[which].c, &now);
		if (now.req_cons - (uint32_t)now.traced != 0xFFFFFF00 || now.flips != now.traced || (uint32_t)now.serial != (uint32_t)now.flips)
			failed("a report of half a flip");
		if (now.in_prod - (uint32_t)now.next_id != 0xFFFFFF00 || now.shown != now.next_id || now.shown != now.counted)
			failed("a report of half an event");
		if (now.flips < last[which].flips || now.shown < last[which].shown)
			failed("a report that is older than the one before");
		peeked += now.shown != last[which].shown;
		last[which] = now;
	}
	return 0;
}

static void *message_thread(void *nothing)
{
	struct pump_message messages[64];

	(void)nothing;
	while (!ended()) {
		struct pollfd polled[2] = { { pump_fd(pump, PUMP_PORTS), POLLIN, 0 }, { pump_fd(pump, PUMP_REST), POLLIN, 0 } };

		poll(polled, 2, 10);
		for (int queue = 0; queue < 2; queue++)
			for (int i = pump_messages(pump, (enum pump_queue)queue, messages, 64); i-- > 0;)
				if (messages[i].kind == PUMP_FAILED && messages[i].fd != other[0])
					pump_watch(pump, messages[i].fd, messages[i].fd == events[0]);
	}
	return 0;
}

static void *copy_thread(void *nothing)
{
	struct pump_copied copied;

	(void)nothing;
	while (!ended()) {
		pump_copier_wait(copier, 0.001, &copied);
		__atomic_fetch_add(&given_copies, (uint32_t)copied.frames, __ATOMIC_RELAXED);
	}
	return 0;
}

static void *poke_thread(void *nothing)
{
	(void)nothing;
	while (!ended()) {
		pump_copier_poke(copier);
		pump_copier_resting(copier);
		usleep(200);
	}
	return 0;
}

static void *pump_thread(void *nothing)
{
	pump_run(pump);
	return nothing;
}

static void make_guest(uint32_t which)
{
	struct guest *g = &guests[which];

	for (uint32_t i = 0; i < FRAMEBUFFERS; i++)
		g->framebuffers[i] = (struct pump_framebuffer){ 1000 * which + i, i + 1, 0, (const uint8_t *)g->frames[i] };
	g->trace = malloc(TRACED * RECORD);
	g->shown_at = malloc(TIMES * sizeof(double));
	g->took = malloc(TIMES * sizeof(double));
	g->c = (struct pump_connector){
		.ring = g->ring, .events = g->events, .atomic = &g->atomic, .fb_value = &g->fb_value, .framebuffers = g->framebuffers,
		.bucket = &bucket, .copier = which ? 0 : copier, .trace = g->trace, .shown_at = g->shown_at, .took = g->took,
		.buckets = g->buckets, .number = which, .late = 0.001, .still = 0.002, .framebuffer_count = FRAMEBUFFERS,
		.port = PORT + which, .event_port = PORT + 50 + which, .evtchn = ports[0], .card = events[0],
		.serial = (uint64_t)which << 40, .req_cons = 0xFFFFFF00, .rsp_prod = 0xFFFFFF00, .in_prod = 0xFFFFFF00,
	};
	*(uint32_t *)(g->ring + REQ_PROD) = *(uint32_t *)(g->ring + RSP_PROD) = 0xFFFFFF00;
	pump_give(pump, &g->c);
}

int main(int argc, char **argv)
{
	static struct pump_atomic atomic;
	static uint64_t fb_value;
	void *(*run[])(void *) = { guest_thread, owner_thread, message_thread, copy_thread, poke_thread, pump_thread, peek_thread };
	enum { THREADS = sizeof run / sizeof *run };
	pthread_t threads[THREADS];

	if (argc != 2 || pipe2(ports, O_NONBLOCK) || pipe2(events, O_NONBLOCK) || pipe2(other, O_NONBLOCK))
		return 2;
	pump = pump_new(&CALLS);
	copier = pump_copier_new(&CALLS);
	pump_copier_set(copier, &(struct pump_copy){
		.atomic = &atomic, .fb_value = &fb_value, .target = { (uint8_t *)back_buffers[0], (uint8_t *)back_buffers[1] },
		.stride = WIDTH, .target_stride = WIDTH, .row = WIDTH - 3, .rows = HEIGHT, .late = 0.002, .card = events[0] });
	for (uint32_t i = 0; i < GUESTS; i++)
		make_guest(i);
	if (pump_watch(pump, ports[0], 0) || pump_watch(pump, events[0], 1))
		return 2;
	for (int i = 0; i < THREADS; i++)
		pthread_create(&threads[i], 0, run[i], 0);
	usleep((useconds_t)(atof(argv[1]) * 1e6));
	__atomic_store_n(&over, 1, __ATOMIC_RELEASE);
	pump_stop(pump);
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], 0);
	for (uint32_t i = 0; i < GUESTS; i++) {
		pump_take(pump, &guests[i].c);
		if (!guests[i].c.traced)
			failed("a guest's flips were never served");
		printf("guest %u: %llu flips\n", i, (unsigned long long)guests[i].c.traced);
		free(guests[i].trace);
		free(guests[i].shown_at);
		free(guests[i].took);
	}
	printf("%u ports armed, %u frames copied, %u steps served in another thread, %u reports\n", served, given_copies, turns, peeked);
	if (!served || !given_copies || !peeked)
		failed("nothing was served");
	pump_copier_free(copier);
	pump_free(pump);
	return 0;
}
