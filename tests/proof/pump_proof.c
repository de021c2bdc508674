/* What the model checker proves of displbe/pump/pump.c. Each function `prove_…` is an entry; test_proof.py runs cbmc on it.
 *
 * A shared page is freed memory here, so every access to it is an error but those of load, store, read_slot and write_slot, which are
 * replaced: what they read is any value, another one each time, as if a guest wrote the page without end. So nothing that is proved
 * depends on what a page contains, or on its staying the same between two reads. Private state is any state, too.
 *
 * All pointers, indices, shifts, divisions and signed sums are checked by cbmc itself, and that each loop ends. An assertion that begins
 * with "reachable" must fail: it shows that the assumptions do not exclude the path.
 */
#include <stdint.h>

/* The accesses of shared pages in their order, as hexadecimal digits. tests/unit/test_barriers.py shows of the same orders in Python that
 * they are right in a weakly ordered memory.
 */
enum { LOAD = 1, READ, WRITE, STORE, FENCE };
static uint64_t order;

static void fence(void)
{
	order = order << 4 | FENCE;
}

#define __atomic_thread_fence(how) fence()

/* What publish stores is noted down (prove_peek), and may come between any two loads of pump_peek. */
static void note(void *where, uint32_t value);
static void replay(void);

#define __atomic_store_n(where, value, how) (*(where) = (value), note((void *)(where), (uint32_t)(value)))
#define __atomic_load_n(where, how) (replay(), *(where))
#include PUMP_C

#define CHECK(condition) __CPROVER_assert(condition, #condition)
#define REACHABLE(path) __CPROVER_assert(0, "reachable: " path)
#define ASSUME __CPROVER_assume

enum { FRAMEBUFFERS = 8, PAGE = 4096, ROWS = 5 };

int nondet_int(void);
uint8_t nondet_u8(void);
uint32_t nondet_u32(void);
uint64_t nondet_u64(void);
long nondet_long(void);
double nondet_double(void);
struct pump_connector nondet_connector(void);
struct pump_message nondet_message(void);
struct pump_bucket nondet_bucket(void);
struct pump_copy nondet_copy(void);

/* The machine */

int clock_gettime(clockid_t clock, struct timespec *t)
{
	t->tv_sec = nondet_int();
	t->tv_nsec = nondet_int();
	ASSUME(t->tv_sec >= 0 && t->tv_nsec >= 0 && t->tv_nsec < 1000000000);
	return 0;
}

/* What now() returns (prove_now), in order of time. */
double any_now(void)
{
	static double last;
	double t = nondet_double();

	ASSUME(t >= last && t <= 1LL << 32);
	return last = t;
}

ssize_t read(int fd, void *data, size_t size)
{
	CHECK(__CPROVER_w_ok(data, size));
	return nondet_long();
}

ssize_t write(int fd, const void *data, size_t size)
{
	CHECK(__CPROVER_r_ok(data, size));
	return nondet_long();
}

int epoll_ctl(int epoll, int operation, int fd, struct epoll_event *event) { return nondet_int(); }

/* Copies are checked. What they copy is not looked at, but for numbers in a card's bytes: any bytes; and for reports. */
static int number_read, reported;

void *memcpy(void *to, const void *from, size_t size)
{
	CHECK(__CPROVER_r_ok(from, size));
	CHECK(__CPROVER_w_ok(to, size));
	if (number_read && size == 4)
		*(uint32_t *)to = nondet_u32();
	if (number_read && size == 8)
		*(uint64_t *)to = nondet_u64();
	for (size_t i = 0; reported && i < size / 4; i++)
		((uint32_t *)to)[i] = ((const uint32_t *)from)[i];
	return to;
}

void *memset(void *to, int byte, size_t size)
{
	CHECK(__CPROVER_w_ok(to, size));
	return to;
}

int pthread_mutex_lock(pthread_mutex_t *m) { return 0; }
int pthread_mutex_unlock(pthread_mutex_t *m) { return 0; }

/* While the pump waits, Python may take messages and stop it. */
static struct pump pump;

int usleep(useconds_t time)
{
	uint32_t ports = nondet_u32(), rest = nondet_u32();

	ASSUME(ports <= queued(&pump.queues[0]) && rest <= queued(&pump.queues[1]));
	pump.queues[0].taken = pump.queues[0].written - ports;
	pump.queues[1].taken = pump.queues[1].written - rest;
	pump.stopping = nondet_int();
	ASSUME(pump.stopping || (ports <= ROOM && rest <= ROOM));  /* else it waits again */
	return 0;
}

/* The guest */

static struct pump_connector guest, before;
static uint32_t loaded[3], loads, words_written, slots_written, notified, rearmed, taken;
static struct { volatile uint8_t *page; uint32_t offset, value; } word[2];
static struct { volatile uint8_t *page; uint32_t index; uint64_t words[8]; } slot;

uint32_t guest_load(const volatile uint8_t *page, uint32_t offset)
{
	CHECK(page == guest.ring || page == guest.events);
	CHECK(offset % 4 == 0 && offset <= PAGE - 4);
	CHECK(loads < 3);
	order = order << 4 | LOAD;
	return loaded[loads++] = nondet_u32();
}

void guest_store(volatile uint8_t *page, uint32_t offset, uint32_t value)
{
	CHECK(page == guest.ring || page == guest.events);
	CHECK(offset % 4 == 0 && offset <= PAGE - 4);
	CHECK(words_written < 2);
	order = order << 4 | STORE;
	word[words_written].page = page;
	word[words_written].offset = offset;
	word[words_written++].value = value;
}

void guest_read_slot(const volatile uint8_t *page, uint32_t index, uint64_t words[SLOT / 8])
{
	CHECK(page == guest.ring);
	CHECK(index < REQUEST_SLOTS);
	order = order << 4 | READ;
	for (int i = 0; i < SLOT / 8; i++)
		words[i] = nondet_u64();
}

void guest_write_slot(volatile uint8_t *page, uint32_t index, const uint64_t words[SLOT / 8])
{
	CHECK(page == guest.ring || page == guest.events);
	CHECK(index < (page == guest.ring ? REQUEST_SLOTS : EVENT_SLOTS));
	slots_written++;
	order = order << 4 | WRITE;
	slot.page = page;
	slot.index = index;
	for (int i = 0; i < SLOT / 8; i++)
		slot.words[i] = words[i];
}

static struct pump_atomic atomic;
static uint64_t fb_value;
static uint32_t committed;

static long any_read(int fd, void *data, unsigned long size)
{
	long got = nondet_long();

	CHECK(__CPROVER_w_ok(data, size));
	__CPROVER_havoc_slice(data, size);
	ASSUME(got >= -4095 && got <= (long)size);  /* as read(2) returns */
	return got;
}

static int any_rearm(int fd, uint32_t port)
{
	CHECK(fd == guest.evtchn && port == guest.port);
	rearmed++;
	return nondet_int();
}

static int any_notify(int fd, uint32_t port)
{
	CHECK(fd == guest.evtchn && (port == guest.port || port == guest.event_port));
	notified++;
	return nondet_int();
}

static int any_commit(int fd, void *argument)
{
	CHECK(fd == guest.card && argument == &atomic);
	CHECK(__CPROVER_rw_ok(argument, sizeof atomic));
	CHECK(atomic.flags == FLIP_FLAGS);
	committed++;
	return nondet_int();
}

/* A connector as Python gives it (display/steady.py): these are the assumptions. display/trace.py and times.py have the tables' sizes. */
static void any_guest(void)
{
	static struct pump_framebuffer framebuffers[FRAMEBUFFERS];
	static struct pump_bucket bucket;
	static struct pump_copier copier;

	for (int i = 0; i < FRAMEBUFFERS; i++) {
		framebuffers[i].cookie = nondet_u64();
		framebuffers[i].fb = nondet_u32();
	}
	bucket = nondet_bucket();
	copier.has_job = nondet_int();
	guest = nondet_connector();
	guest.ring = malloc(PAGE);
	guest.events = malloc(PAGE);
	free((void *)guest.ring);
	free((void *)guest.events);
	ASSUME(guest.ring != guest.events);
	guest.atomic = &atomic;
	guest.fb_value = &fb_value;
	ASSUME(guest.framebuffer_count <= FRAMEBUFFERS);
	guest.framebuffers = framebuffers + FRAMEBUFFERS - guest.framebuffer_count;
	guest.bucket = &bucket;
	guest.copier = nondet_int() ? &copier : 0;
	guest.trace = malloc(TRACED * RECORD);
	guest.shown_at = malloc(TIMES * sizeof(double));
	guest.took = malloc(TIMES * sizeof(double));
	guest.buckets = malloc(BUCKETS * sizeof(uint64_t));
	ASSUME(guest.trace && guest.shown_at && guest.took && guest.buckets);
	before = guest;
	pump.calls = (struct pump_calls){ any_read, any_rearm, any_notify, any_commit };
}

static int nothing_changed(void)
{
	return guest.state == before.state && guest.req_cons == before.req_cons && guest.rsp_prod == before.rsp_prod &&
	       guest.in_prod == before.in_prod && guest.told == before.told && guest.next_id == before.next_id &&
	       guest.serial == before.serial && guest.token == before.token && guest.latest == before.latest &&
	       guest.traced == before.traced && guest.counted == before.counted && guest.flips == before.flips &&
	       guest.shown == before.shown && guest.edition == before.edition && !taken && !words_written && !slots_written && !notified && !rearmed;
}

/* Python's part of a connector is the same afterwards. */
static int constants_kept(void)
{
	return guest.ring == before.ring && guest.events == before.events && guest.atomic == before.atomic &&
	       guest.framebuffers == before.framebuffers && guest.framebuffer_count == before.framebuffer_count &&
	       guest.bucket == before.bucket && guest.copier == before.copier && guest.number == before.number &&
	       guest.port == before.port && guest.event_port == before.event_port && guest.evtchn == before.evtchn &&
	       guest.card == before.card && guest.trace == before.trace;
}

double any_take_tokens(struct pump_bucket *b, double t, double amount)
{
	CHECK(b == guest.bucket && amount == 1);
	taken++;
	return nondet_double();
}

void prove_serve(void)
{
	any_guest();
	int served = serve(&pump, &guest);

	CHECK(constants_kept());
	CHECK(committed <= 1 && !rearmed);
	if (!served) {
		CHECK(nothing_changed());
		if (committed)
			REACHABLE("the card refuses the flip");
		return;
	}
	CHECK(before.state == PUMP_IDLE && guest.state == PUMP_PENDING);
	CHECK(before.req_cons == before.rsp_prod && loaded[0] == (uint32_t)(before.req_cons + 1));
	CHECK(loads == 2 && (notified == 1) == (loaded[1] == guest.rsp_prod));
	CHECK(guest.req_cons == (uint32_t)(before.req_cons + 1) && guest.rsp_prod == guest.req_cons);
	CHECK(slots_written == 1 && slot.page == guest.ring && slot.index == before.req_cons % REQUEST_SLOTS);
	CHECK(words_written == 1 && word[0].page == guest.ring && word[0].offset == RSP_PROD && word[0].value == guest.rsp_prod);
	CHECK((slot.words[0] & ~0xFFFFULL) == PG_FLIP << 16);
	CHECK(!slot.words[1] && !slot.words[2] && !slot.words[3] && !slot.words[4] && !slot.words[5] && !slot.words[6] && !slot.words[7]);
	CHECK(order == 0x123451);
	CHECK(guest.copier ? committed == 0 : committed == 1 && atomic.user_data == guest.serial);
	CHECK(taken == 1 && guest.bucket->burst >= 1);
	CHECK(guest.edition == before.edition + 2);
	REACHABLE("a flip is served");
	if (guest.copier)
		REACHABLE("a flip is handed to the copying thread");
	if (notified)
		REACHABLE("the guest is notified");
	if (guest.req_cons == 0)
		REACHABLE("the index wraps around");
}

void prove_request(void)
{
	any_guest();
	if (pump_request(&pump, &guest)) {
		CHECK(rearmed == 1 && words_written == 2);
		CHECK(word[1].page == guest.ring && word[1].offset == REQ_EVENT && word[1].value == (uint32_t)(guest.req_cons + 1));
		CHECK(order == 0x123451451);
		REACHABLE("the port is armed");
	} else {
		CHECK(!rearmed);
		if (slots_written)
			REACHABLE("another request has come meanwhile");
	}
	CHECK(constants_kept());
}

void prove_shown(void)
{
	any_guest();
	int served = pump_shown(&pump, &guest);

	CHECK(constants_kept() && !committed && !rearmed);
	if (!served) {
		CHECK(nothing_changed());
		return;
	}
	CHECK(before.state == PUMP_PENDING && guest.state == PUMP_IDLE && notified == 1);
	CHECK(loads == 1 && (uint32_t)(before.in_prod - loaded[0]) < EVENT_SLOTS);
	CHECK(guest.in_prod == (uint32_t)(before.in_prod + 1) && guest.next_id == before.next_id + 1);
	CHECK(slots_written == 1 && slot.page == guest.events && slot.index == before.in_prod % EVENT_SLOTS);
	CHECK(words_written == 1 && word[0].page == guest.events && word[0].offset == IN_PROD && word[0].value == guest.in_prod);
	CHECK(order == 0x134);
	CHECK(guest.edition == before.edition + 2);
	CHECK(slot.words[0] == (before.next_id & 0xFFFF) && slot.words[1] == before.token);
	CHECK(!slot.words[2] && !slot.words[3] && !slot.words[4] && !slot.words[5] && !slot.words[6] && !slot.words[7]);
	REACHABLE("an event is written");
}

/* The accesses themselves, to a page of exactly 4096 bytes. */
void prove_accesses(void)
{
	uint8_t *page = malloc(PAGE);
	uint64_t words[SLOT / 8];
	uint32_t offset = nondet_u32(), index = nondet_u32();

	ASSUME(page && offset % 4 == 0 && offset <= PAGE - 4 && index < EVENT_SLOTS);
	store(page, offset, nondet_u32());
	load(page, offset);
	read_slot(page, index, words);
	write_slot(page, index, words);
	REACHABLE("all accesses");
}

/* Files. Queues have at most ROOM messages, as wait_for_room leaves them (prove_run); messages handed over are counted. */

static struct pump_connector one, another;

static void any_pump(uint32_t room)
{
	pump.count = nondet_u32();
	ASSUME(pump.count <= CONNECTORS);
	one = nondet_connector();
	another = nondet_connector();
	for (int i = 0; i < CONNECTORS; i++)
		pump.connectors[i] = nondet_int() ? &one : &another;
	for (int i = 0; i < WATCHES; i++)
		pump.watches[i] = (struct watch){ nondet_int(), nondet_int(), nondet_u32() };
	for (int i = 0; i < 2; i++) {
		pump.queues[i].written = nondet_u32();
		pump.queues[i].taken = nondet_u32();
		ASSUME(queued(&pump.queues[i]) <= room);
	}
	pump.stopping = nondet_int();
	pump.calls.read = any_read;
}

int any_request(struct pump *p, struct pump_connector *c)
{
	CHECK(c == &one || c == &another);
	return nondet_int();
}

void any_hand(struct pump *p, enum pump_queue queue, struct pump_message message)
{
	CHECK(queued(&p->queues[queue]) < QUEUE);
	p->queues[queue].written++;
}

static int queues_hold(void)
{
	return queued(&pump.queues[0]) <= QUEUE && queued(&pump.queues[1]) <= QUEUE;
}

void any_flip_event(struct pump *p, int card, uint64_t serial)
{
	if (nondet_int())
		any_hand(p, PUMP_REST, nondet_message());
}

void prove_ports(void)
{
	any_pump(ROOM);
	serve_ports(&pump, &pump.watches[1], nondet_u32());
	CHECK(queues_hold());
	if (queued(&pump.queues[0]) == ROOM + PORTS)
		REACHABLE("every port is handed over");
}

void prove_card(void)
{
	any_pump(ROOM);
	number_read = 1;
	serve_card(&pump, &pump.watches[1], nondet_u32());
	CHECK(queues_hold());
	if (queued(&pump.queues[1]) == ROOM + PORTS)
		REACHABLE("every event is handed over");
}

void prove_flip_event(void)
{
	any_pump(ROOM);
	uint32_t count = queued(&pump.queues[1]);

	serve_flip_event(&pump, nondet_int(), nondet_u64());
	CHECK(queued(&pump.queues[1]) - count <= 1);
	if (queued(&pump.queues[1]) > count)
		REACHABLE("an event is handed over");
	else
		REACHABLE("an event is served");
}

void prove_hand(void)
{
	any_pump(QUEUE - 1);
	hand(&pump, PUMP_PORTS, nondet_message());
	hand(&pump, PUMP_REST, nondet_message());
	CHECK(queues_hold());
	REACHABLE("two messages");
}

void prove_times(void)
{
	any_pump(ROOM);
	int wait = serve_times(&pump);

	CHECK(wait >= -1);
	CHECK(queues_hold());
	if (queued(&pump.queues[1]) == ROOM + CONNECTORS)
		REACHABLE("everything is told");
	if (wait > 1000)
		REACHABLE("something is told later");
}

/* One turn of the thread's loop, from any state. What it calls needs room in the queues. */

int any_times(struct pump *p)
{
	static int turns;

	ASSUME(++turns == 1);  /* the next turn begins with any queues, too */
	CHECK(!p->stopping && queued(&p->queues[0]) <= ROOM && queued(&p->queues[1]) <= ROOM);
	p->queues[1].written += nondet_u32() % (CONNECTORS + 1);
	return nondet_int();
}

void any_file(struct pump *p, struct watch *w, uint32_t events)
{
	CHECK(queued(&p->queues[0]) <= ROOM && queued(&p->queues[1]) <= ROOM);
	CHECK(w >= p->watches && w < p->watches + WATCHES && w->fd >= 0);
	p->queues[0].written += nondet_u32() % (PORTS + 2);
	p->queues[1].written += nondet_u32() % (PORTS + 2);
	CHECK(queues_hold());
	REACHABLE("a file is read");
}

int epoll_wait(int epoll, struct epoll_event *events, int room, int milliseconds)
{
	int got = nondet_int();

	CHECK(__CPROVER_w_ok(events, room * sizeof *events));
	for (int i = 0; i < EVENTS; i++) {
		events[i].events = nondet_u32();
		events[i].data.u64 = nondet_u64();
	}
	ASSUME(got >= -1 && got <= room);
	return got;
}

void prove_run(void)
{
	any_pump(QUEUE);
	pump_run(&pump);
	CHECK(queues_hold());
	REACHABLE("the loop ends");
}

/* Python's side */

void prove_messages(void)
{
	int room = nondet_u8();
	struct pump_message *messages = malloc(room * sizeof *messages);

	ASSUME(messages);
	any_pump(QUEUE);
	enum pump_queue queue = nondet_int() ? PUMP_PORTS : PUMP_REST;
	uint32_t count = queued(&pump.queues[queue]);
	int got = pump_messages(&pump, queue, messages, room);

	CHECK(got >= 0 && got <= room && queued(&pump.queues[queue]) == count - (uint32_t)got);
	CHECK(got == room || got == (int)count);
	if (got == QUEUE)
		REACHABLE("messages are taken");
}

void prove_take(void)
{
	struct pump_connector *c = nondet_int() ? &one : &another;

	any_pump(ROOM);
	if (nondet_int())
		pump_give(&pump, c);
	CHECK(pump.count <= CONNECTORS);
	pump_take(&pump, c);
	CHECK(pump.count <= CONNECTORS);
	uint32_t k = nondet_u32();

	ASSUME(k < pump.count);
	CHECK(pump.connectors[k] != c);
	REACHABLE("another connector is left");
}

void prove_watch(void)
{
	int fd = nondet_int();

	any_pump(ROOM);
	ASSUME(fd >= 0);
	if (pump_watch(&pump, fd, nondet_int()) == 0)
		REACHABLE("a file is watched");
	pump_unwatch(&pump, fd);
	uint32_t k = nondet_u32();

	ASSUME(k < WATCHES);
	CHECK(pump.watches[k].fd != fd);
}

/* A report. WORDS is 2 in this proof: of a longer report, each two words are proved. The pump makes three steps while pump_peek reads.
 *
 * All stores of publish are releases by one thread, all loads of pump_peek acquires. So a load may see any store from the last one on that
 * an earlier load has seen, or that was known when pump_peek was called; and after it, all stores before the one that it has seen. The
 * same comes out when the stores are made in their order, some before each load.
 */
enum { STEPS = 3, STORES = 4 };

static struct pump_connector peeked;
static struct { uint32_t *where, value; } noted[STEPS * STORES];
static uint32_t notes, made;

static void note(void *where, uint32_t value)
{
	if (!reported)
		return;
	CHECK(notes < STEPS * STORES);
	noted[notes].where = where;
	noted[notes++].value = value;
}

static void replay(void)
{
	uint32_t *const words[] = { &peeked.edition, &peeked.reports[0][0], &peeked.reports[0][1], &peeked.reports[1][0], &peeked.reports[1][1] };
	uint32_t until = nondet_u32();

	if (!reported)
		return;
	ASSUME(until >= made && until <= notes);
	for (uint32_t i = 0; i < STEPS * STORES; i++)  /* each word is named: a model of any address takes minutes */
		for (int k = 0; k < 5; k++)
			if (i >= made && i < until && noted[i].where == words[k])
				*words[k] = noted[i].value;
	made = until;
}

void prove_peek(void)
{
	static struct pump_connector copy;
	uint32_t states[STEPS + 1], consumed[STEPS + 1], known;
	int same = 0;

	peeked.edition = -4U;  /* it wraps around */
	states[0] = peeked.state = nondet_u32();
	consumed[0] = peeked.req_cons = nondet_u32();
	reported = 1;
	publish(&peeked);
	notes = 0;
	struct pump_connector first = peeked;

	for (int i = 1; i <= STEPS; i++) {
		states[i] = peeked.state = nondet_u32();
		consumed[i] = peeked.req_cons = nondet_u32();
		publish(&peeked);
	}
	peeked = first;
	replay();
	known = made / STORES;
	pump_peek(&peeked, &copy);
	for (uint32_t i = 0; i <= STEPS; i++)
		same |= i >= known && copy.state == states[i] && copy.req_cons == consumed[i];
	CHECK(same);
	if (made > known * STORES + STORES)
		REACHABLE("the pump makes steps meanwhile");
	REACHABLE("a report");
}

void prove_tokens(void)
{
	struct pump_bucket b = nondet_bucket();
	double t = any_now();

	ASSUME(b.rate >= 0.001 && b.rate <= 1e9 && b.burst >= 0 && b.burst <= 1e9 && b.empty_at <= 1e12);
	double empty_at = take_tokens(&b, t, 1);

	CHECK(b.empty_at == empty_at);
	REACHABLE("tokens are taken");
}

/* Copy mode. The assumptions are what sinks/drm/copied_scanout.py checks (_address): both buffers of the card and the guest's hold all
 * rows. display/screen.py refuses a part of no rows.
 */
static int any_busy_commit(int fd, void *argument)
{
	static int busy;

	CHECK(__CPROVER_rw_ok(argument, sizeof atomic));
	return ++busy < 3 ? nondet_int() % 4096 : 0;
}

void prove_copy(void)
{
	static struct pump_copier k;
	uint64_t size = nondet_u64(), guest_size = nondet_u64();
	struct pump_framebuffer job = { nondet_u64(), nondet_u32(), 0, 0 };
	double seconds;

	k.copy = nondet_copy();
	ASSUME(k.copy.rows >= 1 && k.copy.rows <= ROWS && k.copy.row <= 1 << 20);
	ASSUME(k.copy.stride <= 1ULL << 31 && k.copy.target_stride <= 1ULL << 31);
	ASSUME(size == k.copy.target_stride * (k.copy.rows - 1) + k.copy.row);
	ASSUME(guest_size == k.copy.stride * (k.copy.rows - 1) + k.copy.row);
	k.copy.target[0] = malloc(size);
	k.copy.target[1] = malloc(size);
	job.pixels = malloc(guest_size);
	ASSUME(k.copy.target[0] && k.copy.target[1] && job.pixels);
	k.copy.atomic = &atomic;
	k.copy.fb_value = &fb_value;
	k.calls.commit = any_busy_commit;
	show_copy(&k, &job, nondet_u64(), &seconds);
	CHECK(atomic.flags == FLIP_FLAGS && fb_value == k.copy.fb[k.copy.back & 1]);
	REACHABLE("a frame is copied");
}

void prove_now(void)
{
	double t = now();

	CHECK(t >= 0 && t <= 1LL << 32);
	REACHABLE("a time");
}

void prove_after(void)
{
	double seconds = nondet_double();

	ASSUME(!(seconds < 0));
	struct timespec at = after(seconds);

	CHECK(at.tv_nsec >= 0 && at.tv_nsec <= 1000000000);
	REACHABLE("a time");
}

struct timespec any_after(double seconds)
{
	CHECK(!(seconds < 0));
	return (struct timespec){ nondet_int(), nondet_int() };
}

/* The copying thread waits, with a job or without one, until it is poked or the time has passed. */
int any_job(struct pump_copier *k)
{
	CHECK(k->has_job);
	k->has_job = 0;
	return nondet_int();
}

int sem_wait(sem_t *s)
{
	static int turns;

	ASSUME(++turns <= 2);
	return nondet_int();
}

int sem_clockwait(sem_t *s, clockid_t clock, const struct timespec *at)
{
	errno = nondet_int();
	return sem_wait(s);
}

void prove_wait(void)
{
	static struct pump_copier k;
	struct pump_copied copied;

	k.has_job = nondet_int();
	k.poked = nondet_int();
	switch (pump_copier_wait(&k, nondet_double(), &copied)) {
	case PUMP_COPIER_TIMEOUT:
		REACHABLE("the time has passed");
		break;
	case PUMP_COPIER_POKED:
		REACHABLE("it was poked");
		break;
	case PUMP_COPIER_FAILED:
		REACHABLE("a job has failed");
		break;
	default:
		CHECK(!"another result");
	}
}
