/* critest's image for no-new-privileges: a set-user-id program that says whom it runs as, in the words that the spec compares. */
#include <stdio.h>
#include <unistd.h>

int main(void)
{
	return printf("Effective uid: %u\n", (unsigned)geteuid()) < 0;
}
