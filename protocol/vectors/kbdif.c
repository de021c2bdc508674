/*
 * Print kbdif.json: messages, offsets and numbers from Xen's own kbdif.h, and Linux's key codes. The tests compare
 * displbe with them.
 *
 *     cc -o kbdif kbdif.c && ./kbdif > kbdif.json
 *
 * The headers are those of Debian's libxen-dev and linux-libc-dev.
 */
#include <stdint.h>
#include <string.h>

#include <linux/input-event-codes.h>
#include <xen/io/kbdif.h>

#include "json.h"

static void open_event(const char *name)
{
    comma();
    printf("    {\"event\": \"%s\", \"fields\": [", name);
    first = true;
    next_byte = 0xa1;
}

#define FILL_S16(message, name, member)                                                                               \
    ((message).member = (int16_t)distinct(sizeof((message).member)),                                                  \
     field(name, "s16", offsetof(__typeof__(message), member), (message).member, 0))

#define OPEN_EVENT(name)                                                                                              \
    do {                                                                                                              \
        union xenkbd_in_event m;                                                                                      \
        memset(&m, 0, sizeof(m));                                                                                     \
        open_event(name)
#define CLOSE_EVENT                                                                                                   \
        close_message(&m, sizeof(m));                                                                                 \
    } while (0)
#define OPEN_TOUCH(name)                                                                                              \
    OPEN_EVENT("TOUCH_" #name);                                                                                       \
    SET(m, "type", mtouch.type, XENKBD_TYPE_MTOUCH);                                                                  \
    SET(m, "event_type", mtouch.event_type, XENKBD_MT_EV_##name);                                                     \
    FILL(m, "contact_id", mtouch.contact_id)

static void events(void)
{
    open_list("events", '[');

    OPEN_EVENT("MOTION");
    SET(m, "type", type, XENKBD_TYPE_MOTION);
    FILL_SIGNED(m, "rel_x", motion.rel_x);
    FILL_SIGNED(m, "rel_y", motion.rel_y);
    FILL_SIGNED(m, "rel_z", motion.rel_z);
    CLOSE_EVENT;

    OPEN_EVENT("KEY");
    SET(m, "type", type, XENKBD_TYPE_KEY);
    SET(m, "pressed", key.pressed, 1);
    FILL(m, "keycode", key.keycode);
    CLOSE_EVENT;

    OPEN_EVENT("POS");
    SET(m, "type", type, XENKBD_TYPE_POS);
    FILL_SIGNED(m, "abs_x", pos.abs_x);
    FILL_SIGNED(m, "abs_y", pos.abs_y);
    FILL_SIGNED(m, "rel_z", pos.rel_z);
    CLOSE_EVENT;

    OPEN_TOUCH(DOWN);
    FILL_SIGNED(m, "abs_x", mtouch.u.pos.abs_x);
    FILL_SIGNED(m, "abs_y", mtouch.u.pos.abs_y);
    CLOSE_EVENT;

    OPEN_TOUCH(UP);
    CLOSE_EVENT;

    OPEN_TOUCH(MOTION);
    FILL_SIGNED(m, "abs_x", mtouch.u.pos.abs_x);
    FILL_SIGNED(m, "abs_y", mtouch.u.pos.abs_y);
    CLOSE_EVENT;

    OPEN_TOUCH(SYN);
    CLOSE_EVENT;

    OPEN_TOUCH(SHAPE);
    FILL(m, "major", mtouch.u.shape.major);
    FILL(m, "minor", mtouch.u.shape.minor);
    CLOSE_EVENT;

    OPEN_TOUCH(ORIENT);
    FILL_S16(m, "orientation", mtouch.u.orientation);
    CLOSE_EVENT;

    close_list(']');
}

int main(void)
{
    printf("{");
    first = true;

    open_list("types", '{');
    NUMBER(XENKBD_TYPE_, MOTION);
    NUMBER(XENKBD_TYPE_, KEY);
    NUMBER(XENKBD_TYPE_, POS);
    NUMBER(XENKBD_TYPE_, MTOUCH);
    close_list('}');

    open_list("touch_events", '{');
    NUMBER(XENKBD_MT_EV_, DOWN);
    NUMBER(XENKBD_MT_EV_, UP);
    NUMBER(XENKBD_MT_EV_, MOTION);
    NUMBER(XENKBD_MT_EV_, SYN);
    NUMBER(XENKBD_MT_EV_, SHAPE);
    NUMBER(XENKBD_MT_EV_, ORIENT);
    close_list('}');

    open_list("xenstore_keys", '{');
    string("FEAT_DSBL_KEYBRD", XENKBD_FIELD_FEAT_DSBL_KEYBRD);
    string("FEAT_DSBL_POINTER", XENKBD_FIELD_FEAT_DSBL_POINTER);
    string("FEAT_ABS_POINTER", XENKBD_FIELD_FEAT_ABS_POINTER);
    string("FEAT_RAW_POINTER", XENKBD_FIELD_FEAT_RAW_POINTER);
    string("FEAT_MTOUCH", XENKBD_FIELD_FEAT_MTOUCH);
    string("REQ_ABS_POINTER", XENKBD_FIELD_REQ_ABS_POINTER);
    string("REQ_RAW_POINTER", XENKBD_FIELD_REQ_RAW_POINTER);
    string("REQ_MTOUCH", XENKBD_FIELD_REQ_MTOUCH);
    string("RING_GREF", XENKBD_FIELD_RING_GREF);
    string("EVT_CHANNEL", XENKBD_FIELD_EVT_CHANNEL);
    string("WIDTH", XENKBD_FIELD_WIDTH);
    string("HEIGHT", XENKBD_FIELD_HEIGHT);
    string("MT_WIDTH", XENKBD_FIELD_MT_WIDTH);
    string("MT_HEIGHT", XENKBD_FIELD_MT_HEIGHT);
    string("MT_NUM_CONTACTS", XENKBD_FIELD_MT_NUM_CONTACTS);
    string("UNIQUE_ID", XENKBD_FIELD_UNIQUE_ID);
    close_list('}');

    events();

    open_list("page", '{');
    OFFSET(struct xenkbd_page, in_cons);
    OFFSET(struct xenkbd_page, in_prod);
    OFFSET(struct xenkbd_page, out_cons);
    OFFSET(struct xenkbd_page, out_prod);
    number("in_ring", XENKBD_IN_RING_OFFS);
    number("in_slot_size", XENKBD_IN_EVENT_SIZE);
    number("in_slots", XENKBD_IN_RING_LEN);
    number("out_ring", XENKBD_OUT_RING_OFFS);
    number("out_slot_size", XENKBD_OUT_EVENT_SIZE);
    number("out_slots", XENKBD_OUT_RING_LEN);
    close_list('}');

    /* The codes of evdev that displbe translates. */
    open_list("codes", '{');
    number("EV_SYN", EV_SYN);
    number("EV_KEY", EV_KEY);
    number("EV_REL", EV_REL);
    number("EV_ABS", EV_ABS);
    number("EV_REP", EV_REP);
    number("SYN_REPORT", SYN_REPORT);
    number("SYN_MT_REPORT", SYN_MT_REPORT);
    number("SYN_DROPPED", SYN_DROPPED);
    number("REL_X", REL_X);
    number("REL_Y", REL_Y);
    number("REL_HWHEEL", REL_HWHEEL);
    number("REL_WHEEL", REL_WHEEL);
    number("REL_WHEEL_HI_RES", REL_WHEEL_HI_RES);
    number("REL_HWHEEL_HI_RES", REL_HWHEEL_HI_RES);
    number("ABS_X", ABS_X);
    number("ABS_Y", ABS_Y);
    number("ABS_MT_SLOT", ABS_MT_SLOT);
    number("ABS_MT_TOUCH_MAJOR", ABS_MT_TOUCH_MAJOR);
    number("ABS_MT_TOUCH_MINOR", ABS_MT_TOUCH_MINOR);
    number("ABS_MT_ORIENTATION", ABS_MT_ORIENTATION);
    number("ABS_MT_POSITION_X", ABS_MT_POSITION_X);
    number("ABS_MT_POSITION_Y", ABS_MT_POSITION_Y);
    number("ABS_MT_TRACKING_ID", ABS_MT_TRACKING_ID);
    number("KEY_ESC", KEY_ESC);
    number("KEY_UNKNOWN", KEY_UNKNOWN);
    number("KEY_OK", KEY_OK);
    number("KEY_MAX", KEY_MAX);
    number("BTN_LEFT", BTN_LEFT);
    number("BTN_TASK", BTN_TASK);
    number("BTN_TOOL_PEN", BTN_TOOL_PEN);
    number("BTN_TOUCH", BTN_TOUCH);
    number("INPUT_PROP_POINTER", INPUT_PROP_POINTER);
    close_list('}');

    printf("\n}\n");
    return 0;
}
