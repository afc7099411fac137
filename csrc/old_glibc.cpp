// Lets a binary built on a newer system run on glibc 2.28, the oldest that torch runs on. GCC's std::shared_ptr reads
// this variable of glibc 2.32 to spare atomic instructions while a process has one thread. Here it is the binary's own,
// and says that there are several.
#if defined(__linux__)
extern "C" __attribute__((visibility("hidden"))) char __libc_single_threaded;
char __libc_single_threaded = 0;
#endif
