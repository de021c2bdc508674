void *mmap(void *, size_t, int, int, int, long long);
int munmap(void *, size_t);
void *memcpy(void *, const void *, size_t);
int memcmp(const void *, const void *, size_t);
