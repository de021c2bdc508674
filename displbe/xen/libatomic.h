uint32_t __atomic_load_4(const void *, int);
void __atomic_store_4(void *, uint32_t, int);
void atomic_thread_fence(int);
