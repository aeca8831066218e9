/* Queries at a steady rate, whether they are answered or not: what a server gets that can't choose its clients.
 *
 * A file holds the packets, each behind its length in two bytes, which are sent over and over from several sockets; bytes
 * 0 and 1 of each get a number. Each second a line tells how many were sent, and how many answers came.
 * Built and run by bench/overload.py: cc -O2 -o flood flood.c; ./flood PORT RATE SECONDS FILE
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

enum { SOCKETS = 16, PLACES = 64, MOST_PACKETS = 1 << 20, REPLY_BYTES = 1500 };

static unsigned char *packets[MOST_PACKETS];
static unsigned sizes[MOST_PACKETS];
static char replies[PLACES][REPLY_BYTES];
static struct iovec out_vectors[PLACES], in_vectors[PLACES];
static struct mmsghdr out[PLACES], in[PLACES];

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static unsigned load(const char *name)
{
    FILE *file = fopen(name, "rb");
    unsigned count = 0;
    if (!file)
        return 0;
    for (int high, low; count < MOST_PACKETS && (high = getc(file)) != EOF && (low = getc(file)) != EOF; count++) {
        sizes[count] = (unsigned)(high << 8 | low);
        packets[count] = malloc(sizes[count]);
        if (fread(packets[count], 1, sizes[count], file) != sizes[count])
            break;
    }
    fclose(file);
    return count;
}

/* NOERROR and NXDOMAIN are answers; a server that gave up says SERVFAIL. */
static int good(const char *reply)
{
    int rcode = reply[3] & 15;
    return (reply[2] & 0x80) != 0 && (rcode == 0 || rcode == 3);
}

int main(int count, char **words)
{
    unsigned known = count == 5 ? load(words[4]) : 0;
    if (!known) {
        fprintf(stderr, "usage: flood PORT RATE SECONDS FILE\n");
        return 2;
    }
    double rate = atof(words[2]), seconds = atof(words[3]);
    struct sockaddr_in server = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(words[1]))};
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int sockets[SOCKETS];
    for (int each = 0; each < SOCKETS; each++) {
        sockets[each] = socket(AF_INET, SOCK_DGRAM, 0);
        if (connect(sockets[each], (struct sockaddr *)&server, sizeof server) != 0) {
            perror("connect");
            return 1;
        }
    }
    for (int place = 0; place < PLACES; place++) {
        out[place].msg_hdr = (struct msghdr){.msg_iov = &out_vectors[place], .msg_iovlen = 1};
        in_vectors[place] = (struct iovec){.iov_base = replies[place], .iov_len = REPLY_BYTES};
        in[place].msg_hdr = (struct msghdr){.msg_iov = &in_vectors[place], .msg_iovlen = 1};
    }
    double began = now(), told = began, due = 0, last = began;
    unsigned long sent = 0, received = 0, number = 0;
    for (unsigned turn = 0;; turn++) {
        double time = now();
        due += (time - last) * rate;
        last = time;
        /* What could not be sent in its time is not made up for. */
        if (due > 4 * PLACES)
            due = 4 * PLACES;
        int sock = sockets[turn % SOCKETS], places = due < PLACES ? (int)due : PLACES;
        for (int place = 0; place < places; place++, number++) {
            unsigned char *packet = packets[number % known];
            packet[0] = (unsigned char)(number >> 8);
            packet[1] = (unsigned char)number;
            out_vectors[place] = (struct iovec){.iov_base = packet, .iov_len = sizes[number % known]};
        }
        int done = places ? sendmmsg(sock, out, (unsigned)places, 0) : 0;
        if (done > 0)
            sent += (unsigned long)done;
        due -= places;
        int came = recvmmsg(sock, in, PLACES, MSG_DONTWAIT, NULL);
        for (int place = 0; place < came; place++)
            received += good(replies[place]);
        if (time - told >= 1) {
            printf("%lu %lu\n", sent, received);
            fflush(stdout);
            sent = received = 0;
            told += 1;
        }
        if (time - began >= seconds + 0.5)
            return 0;
        if (!places && came <= 0) {
            struct timespec pause = {.tv_nsec = 20000};
            nanosleep(&pause, NULL);
        }
    }
}
