/* The floor of all servers on UDP: what comes in goes back, with QR set, up to 64 packets by one system call.
 *
 * It reads no question and has no answer, counts nothing and asks for no pktinfo: what it costs is the kernel's share.
 * Built and run by bench/servers.py: cc -O2 -o echo echo.c; ./echo PORT
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum { PLACES = 64, PLACE_BYTES = 4096 + 128 };

static char packets[PLACES][PLACE_BYTES];
static struct sockaddr_in peers[PLACES];
static struct iovec vectors[PLACES];
static struct mmsghdr messages[PLACES];

int main(int count, char **words)
{
    if (count != 2) {
        fprintf(stderr, "usage: echo PORT\n");
        return 2;
    }
    int sock = socket(AF_INET, SOCK_DGRAM, 0);
    int room = 4 * 1024 * 1024;
    setsockopt(sock, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
    struct sockaddr_in own = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(words[1]))};
    own.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(sock, (struct sockaddr *)&own, sizeof own) != 0) {
        perror("bind");
        return 1;
    }
    for (int place = 0; place < PLACES; place++) {
        vectors[place].iov_base = packets[place];
        messages[place].msg_hdr.msg_iov = &vectors[place];
        messages[place].msg_hdr.msg_iovlen = 1;
        messages[place].msg_hdr.msg_name = &peers[place];
    }
    for (;;) {
        for (int place = 0; place < PLACES; place++) {
            vectors[place].iov_len = PLACE_BYTES;
            messages[place].msg_hdr.msg_namelen = sizeof peers[place];
        }
        int received = recvmmsg(sock, messages, PLACES, MSG_WAITFORONE, NULL);
        if (received < 0)
            continue;
        for (int place = 0; place < received; place++) {
            vectors[place].iov_len = messages[place].msg_len;
            packets[place][2] |= (char)0x80;
        }
        for (int first = 0; first < received;) {
            int sent = sendmmsg(sock, messages + first, (unsigned)(received - first), 0);
            /* A peer that can't be reached costs its own packet alone. */
            first += sent > 0 ? sent : 1;
        }
    }
}
