/** Bad input; the message is one line: what, where, found, needed, next step. */
export class RunError extends Error {}
