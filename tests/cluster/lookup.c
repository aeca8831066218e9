/*
 * What a program does that looks a name up: lookup NAME prints its addresses, one a line, and ends with 6 where there
 * are none. Built with musl it asks as Alpine does.
 */
#define _POSIX_C_SOURCE 200809L
#include <netdb.h>
#include <stdio.h>
#include <sys/socket.h>

int main(int argc, char **argv)
{
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *found, *each;
    char address[256];

    if (argc != 2)
        return 2;
    int failed = getaddrinfo(argv[1], NULL, &hints, &found);
    if (failed) {
        fprintf(stderr, "%s\n", gai_strerror(failed));
        return 6;
    }
    for (each = found; each; each = each->ai_next)
        if (!getnameinfo(each->ai_addr, each->ai_addrlen, address, sizeof address, NULL, 0, NI_NUMERICHOST))
            puts(address);
    return 0;
}
