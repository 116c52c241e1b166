/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Unix sockets at restore. A socket's name is made to lead to the detached mount, from the
 * first call that uses it until CRIU returns to where it was (prep_unix_sk_cwd to
 * revert_unix_sk_cwd, criu/sk-unix.c). This is in a task, and only for that task.
 */
#ifndef CRIU_DETACHED_RESTORE_SOCKETS_H
#define CRIU_DETACHED_RESTORE_SOCKETS_H

/** restore_sockets_reset - forget an earlier restore; done before names are added */
void restore_sockets_reset(void);

/**
 * restore_sockets_init - steer what CRIU does with names of sockets, if any was added
 * @why_not: why socket_view_leave will not be called; NULL: it will be
 *
 * Return: 0, or -1 with the reason in the log.
 */
int restore_sockets_init(const char *why_not);

/** socket_view_leave - CRIU is about to go elsewhere: put back the task's root */
void socket_view_leave(void);

#endif
