// Lets a binary built on a newer system run on the oldest that torch runs on: glibc 2.28 and the libstdc++ of GCC 8
// (manylinux_2_28). What GCC's headers take from newer ones is here, as the binary's own.
#if defined(__linux__)
#include <new>
#include <sstream>

// glibc 2.32. std::shared_ptr reads it to spare atomic instructions while a process has one thread; this one says that
// there are several.
extern "C" __attribute__((visibility("hidden"))) char __libc_single_threaded;
char __libc_single_threaded = 0;

#if defined(__GLIBCXX__)
// libstdc++ of GCC 9 and 11: constructors and str() of string streams; a function that throws.
template class std::basic_stringbuf<char>;
template class std::basic_ostringstream<char>;
template class std::basic_stringstream<char>;
#if _GLIBCXX_RELEASE >= 11
namespace std {
void __throw_bad_array_new_length() { throw bad_array_new_length(); }
} // namespace std
#endif
#endif
#endif
