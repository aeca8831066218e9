/*
 * What a program does that was built for Alpine: musl resolves the name, the first of its addresses that takes a
 * connection is asked for /, and the reply goes to stdout.
 *
 * fetch NAME PORT ends as curl does: 0; 6 where the name could not be resolved; 7 where nobody took the connection.
 */
#define _POSIX_C_SOURCE 200809L
#include <netdb.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *found, *each;
    struct timeval patience = {.tv_sec = 2};
    static const char request[] = "GET / HTTP/1.0\r\n\r\n";
    char buffer[4096];
    ssize_t count;

    if (argc != 3)
        return 2;
    int failed = getaddrinfo(argv[1], argv[2], &hints, &found);
    if (failed) {
        fprintf(stderr, "%s\n", gai_strerror(failed));
        return 6;
    }
    for (each = found; each; each = each->ai_next) {
        int link = socket(each->ai_family, each->ai_socktype, each->ai_protocol);
        if (link < 0)
            continue;
        setsockopt(link, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
        setsockopt(link, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
        if (connect(link, each->ai_addr, each->ai_addrlen) == 0 && write(link, request, sizeof request - 1) > 0) {
            while ((count = read(link, buffer, sizeof buffer)) > 0)
                fwrite(buffer, 1, (size_t)count, stdout);
            return count < 0 ? 7 : 0;
        }
        close(link);
    }
    perror("connect");
    return 7;
}
