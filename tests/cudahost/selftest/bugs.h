#ifndef LVP_TESTS_CUDAHOST_SELFTEST_BUGS_H
#define LVP_TESTS_CUDAHOST_SELFTEST_BUGS_H

// The build in which a bug must be noticed: some need a sanitizer.
enum lvp_build { LVP_ANY_BUILD, LVP_ASAN_BUILD, LVP_TSAN_BUILD };

struct lvp_bug {
    const char *name; // NULL: the end
    lvp_build build;
};

extern const lvp_bug lvp_bugs[];

// Runs everything, wrong where `bug` is named ("": nothing). True: the results are right.
bool lvp_run_all_right_but(const char *bug);
bool lvp_nccl_right_but(const char *bug); // nccl_bugs.cpp: its part of them

#endif
