#ifndef DISPLBE_PUMP_H
#define DISPLBE_PUMP_H
/* cdef */
const char *pump_version(void);
int pump_probe(void);
/* end */
#endif
