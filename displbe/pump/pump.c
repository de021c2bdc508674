#include "pump.h"

#include <pthread.h>
#include <string.h>
#include <sys/epoll.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char bytes[64];

const char *pump_version(void)
{
    return PUMP_VERSION;
}

int pump_probe(void)
{
    char copy[64];
    pthread_cond_t cond;
    pthread_cond_init(&cond, NULL);
    pthread_mutex_lock(&lock);
    memcpy(copy, bytes, sizeof copy);
    pthread_mutex_unlock(&lock);
    return epoll_create1(copy[0]);
}
