/*
 * Helpers to print the vectors as JSON. The bytes of all fields of a message differ, so that a misplaced field shows.
 */
#ifndef JSON_H
#define JSON_H

#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* A comma comes before every item except the first one of its list. */
static bool first;

static void comma(void)
{
    printf("%s", first ? "\n" : ",\n");
    first = false;
}

static void open_list(const char *name, char bracket)
{
    comma();
    printf("  \"%s\": %c", name, bracket);
    first = true;
}

static void close_list(char bracket)
{
    printf("\n  %c", bracket);
    first = false;
}

static void number(const char *name, uint64_t value)
{
    comma();
    printf("    \"%s\": %" PRIu64, name, value);
}

static void string(const char *name, const char *value)
{
    comma();
    printf("    \"%s\": \"%s\"", name, value);
}

/* Messages. */
static unsigned next_byte;

static uint64_t distinct(size_t size)
{
    uint64_t value = 0;

    for (size_t i = 0; i < size; i++)
        value |= (uint64_t)next_byte++ << (8 * i);
    return value;
}

static void close_message(const void *message, size_t size)
{
    printf("\n    ],\n    \"bytes\": \"");
    for (size_t i = 0; i < size; i++)
        printf("%02x", ((const unsigned char *)message)[i]);
    printf("\"}");
    first = false;
}

static void field(const char *name, const char *type, size_t offset, int64_t negative, uint64_t value)
{
    comma();
    printf("      {\"name\": \"%s\", \"type\": \"%s\", \"offset\": %zu, \"value\": ", name, type, offset);
    if (negative)
        printf("%" PRId64 "}", negative);
    else
        printf("%" PRIu64 "}", value);
}

#define UNSIGNED_TYPE(lvalue)                                                                                         \
    (sizeof(lvalue) == 8 ? "u64" : sizeof(lvalue) == 4 ? "u32" : sizeof(lvalue) == 2 ? "u16" : "u8")
#define SET(message, name, member, v)                                                                                 \
    ((message).member = (v),                                                                                          \
     field(name, UNSIGNED_TYPE((message).member), offsetof(__typeof__(message), member), 0, (message).member))
#define FILL(message, name, member) SET(message, name, member, distinct(sizeof((message).member)))
#define FILL_SIGNED(message, name, member)                                                                            \
    ((message).member = (int32_t)distinct(sizeof((message).member)),                                                  \
     field(name, "s32", offsetof(__typeof__(message), member), (message).member, 0))

#define NUMBER(prefix, name) number(#name, prefix##name)
#define OFFSET(type, member) number(#member, offsetof(type, member))

#endif
