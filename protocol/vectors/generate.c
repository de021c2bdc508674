/*
 * Print displif.json: messages, offsets and numbers from Xen's own headers. The tests compare displbe with them.
 *
 *     cc -o generate generate.c && ./generate > displif.json
 *
 * The headers are those of Debian's libxen-dev. Each byte of a field differs from all other bytes of its message, and
 * is above 0x80. So a test finds a swapped, shifted, shortened or sign-extended field.
 */
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>

/* Without this, the headers assume the oldest interface, with other names for the barriers. */
#define __XEN_INTERFACE_VERSION__ 0x00040900
#include <xen/xen.h>
#include <xen/errno.h>
#include <xen/grant_table.h>

#define xen_mb() __sync_synchronize()
#define xen_rmb() __sync_synchronize()
#define xen_wmb() __sync_synchronize()
#include <xen/io/ring.h>
#include <xen/io/displif.h>
#include <xen/io/xenbus.h>
#include <xen/io/xs_wire.h>
#include <xen/sys/evtchn.h>
#include <xen/sys/gntdev.h>

#include "json.h"

static void open_message(void)
{
    comma();
    printf("    {\"fields\": [");
    first = true;
    next_byte = 0xa1;
}

#define OPEN_REQUEST(kind)                                                                                            \
    do {                                                                                                              \
        struct xendispl_req m;                                                                                        \
        memset(&m, 0, sizeof(m));                                                                                     \
        open_message();                                                                                               \
        FILL(m, "id", id);                                                                                            \
        SET(m, "operation", operation, XENDISPL_OP_##kind)
#define CLOSE_MESSAGE                                                                                                 \
        close_message(&m, sizeof(m));                                                                                 \
    } while (0)

static void requests(void)
{
    open_list("requests", '[');

    OPEN_REQUEST(DBUF_CREATE);
    FILL(m, "dbuf_cookie", op.dbuf_create.dbuf_cookie);
    FILL(m, "width", op.dbuf_create.width);
    FILL(m, "height", op.dbuf_create.height);
    FILL(m, "bpp", op.dbuf_create.bpp);
    FILL(m, "buffer_sz", op.dbuf_create.buffer_sz);
    FILL(m, "flags", op.dbuf_create.flags);
    FILL(m, "gref_directory", op.dbuf_create.gref_directory);
    FILL(m, "data_ofs", op.dbuf_create.data_ofs);
    CLOSE_MESSAGE;

    OPEN_REQUEST(DBUF_DESTROY);
    FILL(m, "dbuf_cookie", op.dbuf_destroy.dbuf_cookie);
    CLOSE_MESSAGE;

    OPEN_REQUEST(FB_ATTACH);
    FILL(m, "dbuf_cookie", op.fb_attach.dbuf_cookie);
    FILL(m, "fb_cookie", op.fb_attach.fb_cookie);
    FILL(m, "width", op.fb_attach.width);
    FILL(m, "height", op.fb_attach.height);
    FILL(m, "pixel_format", op.fb_attach.pixel_format);
    CLOSE_MESSAGE;

    OPEN_REQUEST(FB_DETACH);
    FILL(m, "fb_cookie", op.fb_detach.fb_cookie);
    CLOSE_MESSAGE;

    OPEN_REQUEST(SET_CONFIG);
    FILL(m, "fb_cookie", op.set_config.fb_cookie);
    FILL(m, "x", op.set_config.x);
    FILL(m, "y", op.set_config.y);
    FILL(m, "width", op.set_config.width);
    FILL(m, "height", op.set_config.height);
    FILL(m, "bpp", op.set_config.bpp);
    CLOSE_MESSAGE;

    OPEN_REQUEST(PG_FLIP);
    FILL(m, "fb_cookie", op.pg_flip.fb_cookie);
    CLOSE_MESSAGE;

    OPEN_REQUEST(GET_EDID);
    FILL(m, "buffer_sz", op.get_edid.buffer_sz);
    FILL(m, "gref_directory", op.get_edid.gref_directory);
    CLOSE_MESSAGE;

    close_list(']');
}

static void responses(void)
{
    open_list("responses", '[');
    for (unsigned operation = XENDISPL_OP_DBUF_CREATE; operation <= XENDISPL_OP_GET_EDID; operation++) {
        struct xendispl_resp m;

        memset(&m, 0, sizeof(m));
        open_message();
        FILL(m, "id", id);
        SET(m, "operation", operation, operation);
        FILL_SIGNED(m, "status", status);
        if (operation == XENDISPL_OP_GET_EDID)
            FILL(m, "edid_sz", op.get_edid.edid_sz);
        close_message(&m, sizeof(m));
    }
    close_list(']');
}

static void events(void)
{
    struct xendispl_evt m;

    memset(&m, 0, sizeof(m));
    open_list("events", '[');
    open_message();
    FILL(m, "id", id);
    SET(m, "type", type, XENDISPL_EVT_PG_FLIP);
    FILL(m, "fb_cookie", op.pg_flip.fb_cookie);
    close_message(&m, sizeof(m));
    close_list(']');
}

/* Results of ring.h's macros, for indices where an implementation easily goes wrong. */
static unsigned char page[XENDISPL_EVENT_PAGE_SIZE] __attribute__((aligned(8)));

static void ring_decisions(void)
{
    static const RING_IDX starts[] = {0, 1, 31, 32, 0x7fffffff, 0x80000000, 0xffffffdf, 0xfffffffe, 0xffffffff};
    static const RING_IDX distances[] = {
        0, 1, 2, 31, 32, 33, 63, 64, 0x7fffffff, 0x80000000, 0x80000001, 0xffffffdf, 0xfffffffe, 0xffffffff,
    };
    struct xen_displif_sring *sring = (struct xen_displif_sring *)page;
    struct xen_displif_back_ring back;
    size_t i, j;

    open_list("push_one_response", '[');
    for (i = 0; i < sizeof(starts) / sizeof(*starts); i++)
        for (j = 0; j < sizeof(distances) / sizeof(*distances); j++) {
            RING_IDX event = starts[i] + distances[j];
            bool notify;

            BACK_RING_ATTACH(&back, sring, starts[i], sizeof(page));
            sring->rsp_prod = starts[i];
            sring->rsp_event = event;
            back.rsp_prod_pvt++;
            RING_PUSH_RESPONSES_AND_CHECK_NOTIFY(&back, notify);
            comma();
            printf("    {\"rsp_prod\": %u, \"rsp_event\": %u, \"notify\": %s}", starts[i], event,
                   notify ? "true" : "false");
        }
    close_list(']');

    open_list("request_prod_overflow", '[');
    for (i = 0; i < sizeof(starts) / sizeof(*starts); i++)
        for (j = 0; j < sizeof(distances) / sizeof(*distances); j++) {
            RING_IDX prod = starts[i] + distances[j];

            BACK_RING_ATTACH(&back, sring, starts[i], sizeof(page));
            comma();
            printf("    {\"rsp_prod\": %u, \"req_prod\": %u, \"overflow\": %s}", starts[i], prod,
                   RING_REQUEST_PROD_OVERFLOW(&back, prod) ? "true" : "false");
        }
    close_list(']');
}

int main(void)
{
    struct xen_displif_sring *sring = (struct xen_displif_sring *)page;

    printf("{");
    first = true;

    open_list("sizes", '{');
    number("request", sizeof(struct xendispl_req));
    number("response", sizeof(struct xendispl_resp));
    number("event", sizeof(struct xendispl_evt));
    close_list('}');

    open_list("operations", '{');
    NUMBER(XENDISPL_OP_, DBUF_CREATE);
    NUMBER(XENDISPL_OP_, DBUF_DESTROY);
    NUMBER(XENDISPL_OP_, FB_ATTACH);
    NUMBER(XENDISPL_OP_, FB_DETACH);
    NUMBER(XENDISPL_OP_, SET_CONFIG);
    NUMBER(XENDISPL_OP_, PG_FLIP);
    NUMBER(XENDISPL_OP_, GET_EDID);
    close_list('}');

    open_list("constants", '{');
    NUMBER(XENDISPL_, DBUF_FLG_REQ_ALLOC);
    NUMBER(XENDISPL_, EVT_PG_FLIP);
    NUMBER(XENDISPL_, EDID_BLOCK_SIZE);
    NUMBER(XENDISPL_, EDID_MAX_SIZE);
    close_list('}');

    open_list("xenstore_keys", '{');
    string("BE_VERSIONS", XENDISPL_FIELD_BE_VERSIONS);
    string("FE_VERSION", XENDISPL_FIELD_FE_VERSION);
    string("REQ_RING_REF", XENDISPL_FIELD_REQ_RING_REF);
    string("REQ_CHANNEL", XENDISPL_FIELD_REQ_CHANNEL);
    string("EVT_RING_REF", XENDISPL_FIELD_EVT_RING_REF);
    string("EVT_CHANNEL", XENDISPL_FIELD_EVT_CHANNEL);
    string("RESOLUTION", XENDISPL_FIELD_RESOLUTION);
    string("BE_ALLOC", XENDISPL_FIELD_BE_ALLOC);
    string("UNIQUE_ID", XENDISPL_FIELD_UNIQUE_ID);
    close_list('}');

    requests();
    responses();
    events();

    open_list("control_ring", '{');
    OFFSET(struct xen_displif_sring, req_prod);
    OFFSET(struct xen_displif_sring, req_event);
    OFFSET(struct xen_displif_sring, rsp_prod);
    OFFSET(struct xen_displif_sring, rsp_event);
    OFFSET(struct xen_displif_sring, ring);
    number("slot_size", sizeof(union xen_displif_sring_entry));
    number("slots", __RING_SIZE(sring, sizeof(page)));
    close_list('}');
    ring_decisions();

    open_list("event_page", '{');
    OFFSET(struct xendispl_event_page, in_cons);
    OFFSET(struct xendispl_event_page, in_prod);
    number("ring", XENDISPL_IN_RING_OFFS);
    number("slot_size", sizeof(struct xendispl_evt));
    number("slots", XENDISPL_IN_RING_LEN);
    number("page_size", XENDISPL_EVENT_PAGE_SIZE);
    close_list('}');

    open_list("page_directory", '{');
    OFFSET(struct xendispl_page_directory, gref_dir_next_page);
    OFFSET(struct xendispl_page_directory, gref);
    number("ref_size", sizeof(grant_ref_t));
    number("refs_per_page",
           (XENDISPL_EVENT_PAGE_SIZE - offsetof(struct xendispl_page_directory, gref)) / sizeof(grant_ref_t));
    close_list('}');

    open_list("errors", '{');
    NUMBER(XEN_, EPERM);
    NUMBER(XEN_, ENOENT);
    NUMBER(XEN_, EIO);
    NUMBER(XEN_, ENOMEM);
    NUMBER(XEN_, EBUSY);
    NUMBER(XEN_, EEXIST);
    NUMBER(XEN_, ENODEV);
    NUMBER(XEN_, EINVAL);
    NUMBER(XEN_, ENOSPC);
    NUMBER(XEN_, EOPNOTSUPP);
    close_list('}');

    open_list("xenbus_states", '{');
    NUMBER(XenbusState, Unknown);
    NUMBER(XenbusState, Initialising);
    NUMBER(XenbusState, InitWait);
    NUMBER(XenbusState, Initialised);
    NUMBER(XenbusState, Connected);
    NUMBER(XenbusState, Closing);
    NUMBER(XenbusState, Closed);
    NUMBER(XenbusState, Reconfiguring);
    NUMBER(XenbusState, Reconfigured);
    close_list('}');

    open_list("xenstore_types", '{');
    NUMBER(XS_, CONTROL);
    NUMBER(XS_, DIRECTORY);
    NUMBER(XS_, READ);
    NUMBER(XS_, GET_PERMS);
    NUMBER(XS_, WATCH);
    NUMBER(XS_, UNWATCH);
    NUMBER(XS_, TRANSACTION_START);
    NUMBER(XS_, TRANSACTION_END);
    NUMBER(XS_, INTRODUCE);
    NUMBER(XS_, RELEASE);
    NUMBER(XS_, GET_DOMAIN_PATH);
    NUMBER(XS_, WRITE);
    NUMBER(XS_, MKDIR);
    NUMBER(XS_, RM);
    NUMBER(XS_, SET_PERMS);
    NUMBER(XS_, WATCH_EVENT);
    NUMBER(XS_, ERROR);
    NUMBER(XS_, IS_DOMAIN_INTRODUCED);
    NUMBER(XS_, RESUME);
    NUMBER(XS_, SET_TARGET);
    NUMBER(XS_, RESET_WATCHES);
    NUMBER(XS_, DIRECTORY_PART);
    close_list('}');

    open_list("xenstore_message", '{');
    OFFSET(struct xsd_sockmsg, type);
    OFFSET(struct xsd_sockmsg, req_id);
    OFFSET(struct xsd_sockmsg, tx_id);
    OFFSET(struct xsd_sockmsg, len);
    number("size", sizeof(struct xsd_sockmsg));
    number("payload_max", XENSTORE_PAYLOAD_MAX);
    close_list('}');

    open_list("gntdev_ioctls", '{');
    NUMBER(IOCTL_GNTDEV_, MAP_GRANT_REF);
    NUMBER(IOCTL_GNTDEV_, UNMAP_GRANT_REF);
    NUMBER(IOCTL_GNTDEV_, DMABUF_EXP_FROM_REFS);
    NUMBER(IOCTL_GNTDEV_, DMABUF_EXP_WAIT_RELEASED);
    NUMBER(IOCTL_GNTDEV_, DMABUF_IMP_TO_REFS);
    NUMBER(IOCTL_GNTDEV_, DMABUF_IMP_RELEASE);
    close_list('}');

    open_list("gntdev_map", '{');
    OFFSET(struct ioctl_gntdev_map_grant_ref, count);
    OFFSET(struct ioctl_gntdev_map_grant_ref, index);
    OFFSET(struct ioctl_gntdev_map_grant_ref, refs);
    OFFSET(struct ioctl_gntdev_grant_ref, domid);
    OFFSET(struct ioctl_gntdev_grant_ref, ref);
    number("ref_size", sizeof(struct ioctl_gntdev_grant_ref));
    close_list('}');

    open_list("gntdev_unmap", '{');
    OFFSET(struct ioctl_gntdev_unmap_grant_ref, index);
    OFFSET(struct ioctl_gntdev_unmap_grant_ref, count);
    number("size", sizeof(struct ioctl_gntdev_unmap_grant_ref));
    close_list('}');

    open_list("gntdev_export", '{');
    OFFSET(struct ioctl_gntdev_dmabuf_exp_from_refs, flags);
    OFFSET(struct ioctl_gntdev_dmabuf_exp_from_refs, count);
    OFFSET(struct ioctl_gntdev_dmabuf_exp_from_refs, fd);
    OFFSET(struct ioctl_gntdev_dmabuf_exp_from_refs, domid);
    OFFSET(struct ioctl_gntdev_dmabuf_exp_from_refs, refs);
    close_list('}');

    open_list("gntdev_wait_released", '{');
    OFFSET(struct ioctl_gntdev_dmabuf_exp_wait_released, fd);
    OFFSET(struct ioctl_gntdev_dmabuf_exp_wait_released, wait_to_ms);
    number("size", sizeof(struct ioctl_gntdev_dmabuf_exp_wait_released));
    close_list('}');

    open_list("gntdev_import", '{');
    OFFSET(struct ioctl_gntdev_dmabuf_imp_to_refs, fd);
    OFFSET(struct ioctl_gntdev_dmabuf_imp_to_refs, count);
    OFFSET(struct ioctl_gntdev_dmabuf_imp_to_refs, domid);
    OFFSET(struct ioctl_gntdev_dmabuf_imp_to_refs, reserved);
    OFFSET(struct ioctl_gntdev_dmabuf_imp_to_refs, refs);
    close_list('}');

    open_list("gntdev_release", '{');
    OFFSET(struct ioctl_gntdev_dmabuf_imp_release, fd);
    OFFSET(struct ioctl_gntdev_dmabuf_imp_release, reserved);
    number("size", sizeof(struct ioctl_gntdev_dmabuf_imp_release));
    close_list('}');

    open_list("evtchn_ioctls", '{');
    NUMBER(IOCTL_EVTCHN_, BIND_INTERDOMAIN);
    NUMBER(IOCTL_EVTCHN_, BIND_UNBOUND_PORT);
    NUMBER(IOCTL_EVTCHN_, UNBIND);
    NUMBER(IOCTL_EVTCHN_, NOTIFY);
    NUMBER(IOCTL_EVTCHN_, RESET);
    NUMBER(IOCTL_EVTCHN_, RESTRICT_DOMID);
    close_list('}');

    open_list("evtchn_bind", '{');
    OFFSET(struct ioctl_evtchn_bind_interdomain, remote_domain);
    OFFSET(struct ioctl_evtchn_bind_interdomain, remote_port);
    number("size", sizeof(struct ioctl_evtchn_bind_interdomain));
    number("port_size", sizeof(struct ioctl_evtchn_notify));
    close_list('}');

    printf("\n}\n");
    return 0;
}
