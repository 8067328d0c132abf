// Tries the host runtime as a detector: every bug of bugs.cpp must be noticed in one of its modes, and what is right
// must pass in all of them.
#include "tests/cudahost/selftest/bugs.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

namespace
{

struct mode {
    const char *order, *lazy;
};
const mode modes[] = {{"forward", ""}, {"reverse", ""},  {"depth", ""},    {"7", ""},
                      {"8", ""},       {"forward", "1"}, {"forward", "2"}, {"reverse", "3"}};

bool applies(const lvp_bug &bug)
{
#if defined(LVP_CUDAHOST_ASAN)
    return bug.build != LVP_TSAN_BUILD;
#elif defined(LVP_CUDAHOST_TSAN)
    return bug.build != LVP_ASAN_BUILD;
#else
    return bug.build == LVP_ANY_BUILD;
#endif
}

// In a process of its own, since a bug may end it. True: nothing was noticed.
bool passes(const char *program, const char *bug, const mode &how, bool quiet)
{
    pid_t child = fork();
    if (child == 0) {
        setenv("LVP_CUDAHOST_ORDER", how.order, 1);
        setenv("LVP_CUDAHOST_LAZY", how.lazy, 1);
        int nowhere = open("/dev/null", O_WRONLY);
        if (quiet) (void)dup2(nowhere, STDERR_FILENO);
        execl(program, program, bug, static_cast<char *>(nullptr));
        _exit(127);
    }
    int status = 0;
    return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

} // namespace

int main(int argc, char **argv)
{
    if (argc > 1) return lvp_run_all_right_but(argv[1]) ? 0 : 1;
    int failures = 0, caught = 0, left_out = 0;
    for (const mode &how : modes)
        if (!passes(argv[0], "", how, false)) {
            printf("right code fails in order %s, lazy %s\n", how.order, how.lazy);
            failures++;
        }
    for (const lvp_bug *bug = lvp_bugs; bug->name != nullptr; bug++) {
        const mode *by = nullptr;
        if (!applies(*bug)) {
            left_out++;
            continue;
        }
        for (const mode &how : modes)
            if (by == nullptr && !passes(argv[0], bug->name, how, true)) by = &how;
        if (by == nullptr) {
            printf("NOT NOTICED  %s\n", bug->name);
            failures++;
            continue;
        }
        printf("noticed      %s (order %s%s%s)\n", bug->name, by->order, *by->lazy != '\0' ? ", lazy " : "", by->lazy);
        caught++;
    }
    printf("%d bugs noticed, %d need another build, %d failures\n", caught, left_out, failures);
    return failures == 0 ? 0 : 1;
}
