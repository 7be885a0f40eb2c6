/* Prints its effective user id: what a set-user-id bit of an image is worth. (busybox gives the bit up by itself.) */
#include <stdio.h>
#include <unistd.h>

int main(void)
{
	return printf("%u\n", (unsigned)geteuid()) < 0;
}
