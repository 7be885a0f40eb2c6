/*
 * Stands in for nginx and httpd in critest's images: `nginx PORT`, with the file's name as the server's.
 *
 * What the specs look for: a process called nginx whose title says "master process", its number in /var/run/NAME.pid, the
 * server's name in the log, a page on the port (IPv4 and IPv6), and an end on SIGTERM, SIGINT or SIGQUIT as the first
 * process of its namespace.
 */
#include <libgen.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define IDLE_MS 30000

static const char page[] = "<!DOCTYPE html>\n<title>Welcome</title>\n<p>The server works.</p>\n";

static void leave(int signal_number)
{
	(void)signal_number;
	_exit(0);
}

/* Answers every request of one connection; a body of a request is not expected. */
static void serve(int peer, const char *name)
{
	char request[8192];
	size_t have = 0;
	struct pollfd ready = {.fd = peer, .events = POLLIN};

	while (poll(&ready, 1, IDLE_MS) > 0) {
		ssize_t got = read(peer, request + have, sizeof request - 1 - have);
		char *end;

		if (got <= 0)
			return;
		have += (size_t)got;
		request[have] = 0;
		while ((end = strstr(request, "\r\n\r\n")) != NULL) {
			printf("%s: %.*s\n", name, (int)strcspn(request, "\r\n"), request);
			if (dprintf(peer, "HTTP/1.1 200 OK\r\nServer: %s\r\nContent-Type: text/html\r\nContent-Length: %zu\r\n\r\n%s",
				    name, sizeof page - 1, page) < 0)
				return;
			end += 4;
			have -= (size_t)(end - request);
			memmove(request, end, have + 1);
		}
		if (have == sizeof request - 1)
			return;
	}
}

static int listening(uint16_t port)
{
	struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = IN6ADDR_ANY_INIT};
	struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons(port)};
	int yes = 1, no = 0, fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd >= 0) {
		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &no, sizeof no);
		if (bind(fd, (struct sockaddr *)&six, sizeof six) == 0 && listen(fd, 64) == 0)
			return fd;
		close(fd);
	}
	/* A node without IPv6. */
	fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -1;
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
	return bind(fd, (struct sockaddr *)&four, sizeof four) == 0 && listen(fd, 64) == 0 ? fd : -1;
}

int main(int count, char **arguments)
{
	char path[256], title[300], pid_file[300];
	const char *name;
	ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
	FILE *file;
	int listener;

	if (count != 2 || length < 0) {
		fprintf(stderr, "usage: nginx PORT (with /proc mounted)\n");
		return 2;
	}
	path[length] = 0;
	if (strstr(arguments[0], "master process") == NULL) {
		snprintf(title, sizeof title, "%s: master process %s", basename(strdup(path)), path);
		execv(path, (char *[]){title, arguments[1], NULL});
		perror(path);
		return 1;
	}
	name = basename(path);
	setvbuf(stdout, NULL, _IOLBF, 0);
	signal(SIGTERM, leave);
	signal(SIGINT, leave);
	signal(SIGQUIT, leave);
	signal(SIGCHLD, SIG_IGN);
	listener = listening((uint16_t)atoi(arguments[1]));
	if (listener < 0) {
		perror("cannot listen");
		return 1;
	}
	snprintf(pid_file, sizeof pid_file, "/var/run/%s.pid", name);
	file = fopen(pid_file, "w");
	if (file == NULL || fprintf(file, "%d\n", (int)getpid()) < 0 || fclose(file) != 0) {
		perror(pid_file);
		return 1;
	}
	printf("%s: ready on port %s\n", name, arguments[1]);
	for (;;) {
		int peer = accept(listener, NULL, NULL);

		if (peer < 0)
			continue;
		if (fork() == 0) {
			close(listener);
			serve(peer, name);
			_exit(0);
		}
		close(peer);
	}
}
