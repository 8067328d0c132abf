#include <stdio.h>

int main(void)
{
    (void)printf("lvpipe %s\n", LVP_VERSION);
    return 0;
}
