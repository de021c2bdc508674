/* The steady page flip, compiled. displbe/pump/native.py is its user; docs/how-it-works.md says who owns what and when.
 *
 * What stands between the lines "cdef" and "end" is also read by cffi, so it has no preprocessor.
 */
#ifndef DISPLBE_PUMP_H
#define DISPLBE_PUMP_H

#include <stdint.h>

/* cdef */
/* System calls. Each returns a negative error number when it fails. Tests and the simulated Xen put functions of their own here. */
struct pump_calls {
	long (*read)(int fd, void *data, unsigned long size);        /* fired ports of an event-channel file, or events of a card */
	int (*rearm)(int fd, uint32_t port);                         /* write(2) to the event-channel file */
	int (*notify)(int fd, uint32_t port);                        /* IOCTL_EVTCHN_NOTIFY */
	int (*commit)(int fd, void *argument);                       /* DRM_IOCTL_MODE_ATOMIC */
};

/* struct drm_mode_atomic of drm_mode.h */
struct pump_atomic {
	uint32_t flags, count_objs;
	uint64_t objs_ptr, count_props_ptr, props_ptr, prop_values_ptr, reserved, user_data;
};

/* A guest's request rate: display/requests.py takes from it, too. Its tokens are one number, so both take without a lock. */
struct pump_bucket {
	double empty_at;                                             /* when it had no token, in seconds of CLOCK_MONOTONIC; changed atomically */
	double burst, rate;
};

/* A framebuffer that may be flipped to: the guest's cookie, the card's id, and in copy mode the first pixel that is copied. */
struct pump_framebuffer {
	uint64_t cookie;
	uint32_t fb, pad;
	const uint8_t *pixels;
};

/* What the copying thread of an output does, of which it changes only `back`. Two dumb buffers: the next frame is copied into `back`. Sizes in bytes. */
struct pump_copy {
	struct pump_atomic *atomic;
	uint64_t *fb_value;                                          /* where `atomic` has the id of the framebuffer */
	uint8_t *target[2];                                          /* the first pixel in each buffer */
	uint64_t stride, target_stride, row, rows;
	double late;                                                 /* seconds for which a busy card is asked again */
	uint32_t fb[2];
	uint32_t back;                                               /* 0 or 1 */
	int32_t card;
};

/* What it has done since the last report. */
struct pump_copied {
	uint64_t frames;
	double seconds;                                              /* for copying */
	double flipped_at;                                           /* the last one, in seconds of CLOCK_MONOTONIC */
	uint64_t cookie;                                             /* of the last one */
	uint64_t serial;                                             /* of the flip that failed */
	int32_t error;                                               /* its error number; 0: none has failed */
	uint32_t back;
};

enum pump_state { PUMP_IDLE, PUMP_PENDING };
enum pump_queue { PUMP_PORTS, PUMP_REST };
enum pump_kind { PUMP_PORT, PUMP_SHOWN, PUMP_FAILED, PUMP_LATE, PUMP_STILL };
enum pump_copier_result { PUMP_COPIER_TIMEOUT, PUMP_COPIER_POKED, PUMP_COPIER_FAILED };

struct pump_message {
	uint32_t kind;                                               /* enum pump_kind */
	int32_t fd;                                                  /* the file that was read, or the connector's card */
	uint64_t value;                                              /* a port, an event's serial number, or a connector's number */
	int32_t error, pad;                                          /* of the read; the file is not watched any more */
};

struct pump_copier;

/* One connector in its steady state. While it is given, only the pump touches it and the pages, and Python only calls pump_peek. */
struct pump_connector {
	/* Set by Python; constant while given. */
	volatile uint8_t *ring, *events;                             /* shared pages of 4096 bytes */
	struct pump_atomic *atomic;
	uint64_t *fb_value;
	struct pump_framebuffer *framebuffers;
	struct pump_bucket *bucket;
	struct pump_copier *copier;                                  /* 0: zero copy */
	uint8_t *trace;                                              /* 4096 records of display/trace.py */
	double *shown_at, *took;                                     /* 8192 times of display/times.py */
	uint64_t *buckets;                                           /* its histogram, of 16 */
	uint64_t number;                                             /* in messages */
	double late, still;                                          /* seconds; still 0: nothing is to be told */
	uint32_t framebuffer_count;
	uint32_t port, event_port;
	int32_t evtchn, card;
	/* Changed by the pump. */
	uint32_t state;                                              /* enum pump_state */
	uint32_t req_cons, rsp_prod, in_prod;                        /* private indices of both pages */
	uint32_t told;                                               /* whether LATE or STILL has been told */
	uint64_t next_id, serial, token, latest;                     /* of events; of flips; cookies of the flip, and of the newest one */
	double begun;                                                /* the newest flip, in seconds of CLOCK_MONOTONIC */
	double total;                                                /* seconds of all flips */
	uint64_t traced, counted, flips, shown;                      /* records; flips in times; accepted and shown since it was given */
	/* For pump_peek: what stands above, from `state` on, after each of the last two steps. */
	uint32_t edition;                                            /* two more for each report; odd while one is being written */
	uint32_t reports[2][25];
};

struct pump;

const char *pump_version(void);
struct pump *pump_new(const struct pump_calls *calls);               /* calls 0: the real ones. Returns 0 and sets errno */
void pump_free(struct pump *p);                                      /* after pump_run has returned */
void pump_run(struct pump *p);                                       /* serves until pump_stop */
void pump_stop(struct pump *p);
int pump_fd(const struct pump *p, enum pump_queue queue);            /* readable: call pump_messages */
int pump_messages(struct pump *p, enum pump_queue queue, struct pump_message *messages, int room); /* returns a count; one thread */
int pump_watch(struct pump *p, int fd, int is_card);                 /* returns a negative error number */
void pump_unwatch(struct pump *p, int fd);                           /* afterwards the pump does not read the file */
int pump_give(struct pump *p, struct pump_connector *c);             /* returns 0 if there are too many */
void pump_take(struct pump *p, struct pump_connector *c);
void pump_peek(const struct pump_connector *c, struct pump_connector *copy); /* copies what the pump changes; the owner calls it */
double pump_take_tokens(struct pump_bucket *bucket, double amount);  /* returns seconds to wait */
int pump_request(struct pump *p, struct pump_connector *c);          /* for tests: serves the ring once, without a thread */
int pump_shown(struct pump *p, struct pump_connector *c);            /* for tests */

struct pump_copier *pump_copier_new(const struct pump_calls *calls);
void pump_copier_free(struct pump_copier *k);
void pump_copier_set(struct pump_copier *k, const struct pump_copy *copy);
void pump_copier_swap(struct pump_copier *k);                        /* Python has shown `back` */
int pump_copier_wait(struct pump_copier *k, double seconds, struct pump_copied *copied); /* below 0: no limit */
void pump_copier_poke(struct pump_copier *k);
int pump_copier_resting(struct pump_copier *k);                      /* whether no frame waits or is being copied */
/* end */

#endif
